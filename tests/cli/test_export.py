"""`lift-det export`, as a user starts it."""

import importlib.util

import cv2
import numpy as np
import pytest
import timm
import torch

from lift_det import LiFT, cli
from lift_det.modeling import save_lift
from tests.engine.tiny_detector import write_output_folder

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lift(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lift") / "lift.safetensors"
    network = LiFT(192, 16)
    torch.nn.init.normal_(network.outc.weight)
    save_lift(network, path, {"layer": "1", "facet": "key", "final_norm": "false"})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_output_folder(tmp_path_factory.mktemp("detector") / "output")


def _run(*arguments):
    return cli.main(["export", *map(str, arguments)])


def test_lift_as_onnx(lift, tmp_path, capsys):
    path = tmp_path / "new" / "lift.onnx"
    assert _run("lift", "--lift", lift, "--output", path, "--size", 64, 96) == 0
    printed = capsys.readouterr().out
    assert printed.count("largest difference") == 3 and "64×96 pixels" in printed
    assert f"{path} (" in printed and "any; multiples of 16 pixels from 32" in printed
    session = onnxruntime.InferenceSession(path)
    images, features = np.ones((1, 3, 48, 80), np.float32), np.ones((1, 192, 3, 5), np.float32)
    (lifted,) = session.run(None, {"images": images, "features": features})
    assert lifted.shape == (1, 192, 6, 10)


def test_features_are_those_the_lift_was_trained_on(lift, tmp_path, capsys):
    """Block 1's keys: so the file says, and later blocks are not in the program."""
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    path = tmp_path / "features.pt2"
    command = ["features", "--backbone", tmp_path / "vit.pth", "--architecture", "vit_tiny_patch16_224"]
    assert _run(*command, "--lift", lift, "--output", path, "--fixed", "--size", 32, 48) == 0
    assert "size: 32 x 48 pixels" in capsys.readouterr().out
    program = torch.export.load(path)
    assert program.module()(torch.zeros(1, 3, 32, 48)).shape == (1, 192, 4, 6)
    attentions = [n for n in program.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
    assert len(attentions) == 1


def test_backbone_of_an_output_folder_is_for_its_square(folder, tmp_path, capsys):
    path = tmp_path / "backbone.pt2"
    assert _run("backbone", "--from", folder, "--output", path) == 0
    assert "size: 64 x 64 pixels" in capsys.readouterr().out
    levels = torch.export.load(path).module()(torch.zeros(1, 3, 64, 64))
    assert list(levels) == ["p2", "p3", "p4", "p5"] and levels["p2"].shape[-2:] == (16, 16)


def test_detector(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (50, 90, 3), np.uint8))
    path = tmp_path / "detector.onnx"
    assert _run("detector", "--from", folder, "--images", tmp_path / "a.png", "--output", path) == 0
    assert "masks: (R, 1, 28, 28)" in capsys.readouterr().out and path.is_file()
    assert _run("detector", "--from", folder, "--images", tmp_path / "b.png", "--output", path) == 1
    assert "b.png" in capsys.readouterr().err
    # no half truths
    assert _run("detector", "--from", folder, "--images", tmp_path / "a.png", "--output", tmp_path / "d.pt2") == 2
    assert "torch.export does not trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--output", "lift.pth"], 2, "ends in .onnx or .pt2"),
        (["--output", "lift.pt2", "--fixed", "--size", 32, 32, "--size", 64, 64], 2, "has one --size"),
        (["--output", "lift.pt2", "--size", 30, 32], 1, "multiples of 16"),
        (["--output", "lift.pt2", "--fixed", "--dynamic"], 2, "not allowed with"),
    ],
)
def test_what_cannot_be(lift, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    assert _run("lift", "--lift", lift, *options) == code
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages(lift, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    assert _run("lift", "--lift", lift, "--output", tmp_path / "lift.onnx") == 1
    assert 'onnx, onnxruntime, onnxscript, which are not installed: pip install "lift_det[export]"' in (
        capsys.readouterr().err
    )
