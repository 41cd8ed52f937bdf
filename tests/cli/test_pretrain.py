"""`lift-det pretrain`."""

import json

import pytest
import timm
import torch

from lift_det import load_lift
from lift_det.cli import main
from lift_det.data import write_synthetic_coco

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with weights.pth of a small ViT and 40 images."""
    root = tmp_path_factory.mktemp("pretrain")
    write_synthetic_coco(root, num_train=40, num_val=2)
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), root / "weights.pth")
    return root


def test_trains_prints_its_table_and_resumes(folder, tmp_path, capsys):
    command = ["pretrain", "--images", folder / "synthetic" / "train", "--backbone", folder / "weights.pth"]
    command += ["--architecture", "vit_tiny_patch16_224", "--device", "cpu", "--output", tmp_path / "out"]
    command += ["--image-size", 64, "--facet", "key", "--layer", 2, "--batch-size", 2]
    assert main([str(argument) for argument in (*command, "--iterations", 3)]) == 0
    printed = capsys.readouterr()
    (bilinear,) = (line for line in printed.out.splitlines() if line.startswith("| bilinear"))
    (lift,) = (line for line in printed.out.splitlines() if line.startswith("| LiFT "))
    assert str(tmp_path / "out" / "lift.safetensors") in printed.out
    assert "3/3" in printed.err and "detectron2" not in printed.out  # its log is in the file
    assert "Environment info" in (tmp_path / "out" / "log.txt").read_text()
    metadata = load_lift(tmp_path / "out" / "lift.safetensors").metadata
    assert metadata["steps"] == "3" and metadata["backbone"] == "vit_tiny_patch16_224"
    assert (metadata["layer"], metadata["facet"], metadata["final_norm"]) == ("2", "key", "false")
    assert metadata["evaluated_images"] == "2"  # of 40
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert f"{last['cosine_2x/bilinear']:.4f}" in bilinear and f"{last['cosine_4x/lift']:.4f}" in lift

    assert main([str(argument) for argument in (*command, "--iterations", 5, "--resume")]) == 0
    assert load_lift(tmp_path / "out" / "lift.safetensors").metadata["steps"] == "5"


@pytest.mark.parametrize(
    ("images", "backbone", "options", "part"),
    [
        ("synthetic/train", "vit_smal_patch14", [], "vit_smal_patch14"),
        ("synthetic/train", "weights.pth", [], "--architecture"),
        ("synthetic/train", "vit_tiny_patch16_224", ["--image-size", "100"], "multiple of 64"),
        ("none", "weights.pth", ["--architecture", "vit_tiny_patch16_224"], "none"),
        ("synthetic/train", "resnet50", [], "resnet50"),
        ("synthetic/train", "nowhere/weights.pth", [], "nowhere/weights.pth"),
    ],
)
def test_explains_what_is_wrong(folder, tmp_path, monkeypatch, capsys, images, backbone, options, part):
    monkeypatch.chdir(folder)
    command = ["pretrain", "--images", images, "--backbone", backbone, "--output", str(tmp_path), "--device", "cpu"]
    assert main([*command, *options]) == 1
    assert part in capsys.readouterr().err
