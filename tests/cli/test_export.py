"""`lift-det export`, as a user starts it."""

import numpy as np
import pytest
import torch

from lift_det import LiFT, cli
from lift_det.modeling import save_lift

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def lift(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lift") / "lift.safetensors"
    network = LiFT(192, 16)
    torch.nn.init.normal_(network.outc.weight)
    save_lift(network, path, {"layer": "1", "facet": "key", "final_norm": "false"})
    return path


def run(*arguments):
    return cli.main(["export", *map(str, arguments)])


def test_lift_as_onnx(lift, tmp_path, capsys):
    path = tmp_path / "new" / "lift.onnx"
    assert run("lift", "--lift", lift, "--output", path, "--size", 64, 96) == 0
    printed = capsys.readouterr().out
    assert printed.count("pixels") == 3 and "64×96" in printed and str(path) in printed
    images, features = np.ones((1, 3, 48, 80), np.float32), np.ones((1, 192, 3, 5), np.float32)
    (lifted,) = onnxruntime.InferenceSession(path).run(None, {"images": images, "features": features})
    assert lifted.shape == (1, 192, 6, 10)


def test_features_are_those_the_lift_was_trained_on(lift, inputs, tmp_path):
    """The keys of block 1, as its file says; later blocks are not in the program."""
    path = tmp_path / "features.pt2"
    command = ["features", "--backbone", inputs / "vit.pth", "--architecture", "vit_tiny_patch16_224"]
    assert run(*command, "--lift", lift, "--upsample", 2, "--output", path, "--fixed", "--size", 32, 48) == 0
    program = torch.export.load(path)
    assert program.module()(torch.zeros(1, 3, 32, 48)).shape == (1, 192, 8, 12)
    assert sum("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes) == 1


def test_backbone_of_an_output_folder_is_for_its_square(detector_folder, tmp_path, capsys):
    path = tmp_path / "backbone.pt2"
    assert run("backbone", "--from", detector_folder, "--output", path) == 0
    assert "64×64" in capsys.readouterr().out
    levels = torch.export.load(path).module()(torch.zeros(1, 3, 64, 64))
    assert list(levels) == ["p2", "p3", "p4", "p5"] and levels["p2"].shape[-2:] == (16, 16)


def test_detector(detector_folder, inputs, tmp_path):
    path = tmp_path / "detector.onnx"
    assert run("detector", "--from", detector_folder, "--images", inputs / "photo.png", "--output", path) == 0
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores", "classes", "masks"]
    assert session.get_inputs()[0].shape == [1, 3, 64, 64]
