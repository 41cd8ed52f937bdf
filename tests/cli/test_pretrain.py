"""`lift-det pretrain`."""

import json

import pytest

from lift_det import load_lift
from lift_det.cli import main
from lift_det.data import write_synthetic_coco


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images."""
    return write_synthetic_coco(tmp_path_factory.mktemp("pretrain"), num_train=40, num_val=2) / "train"


def test_trains_prints_its_table_and_resumes(images, vit_file, tmp_path, capsys):
    command = ["pretrain", "--images", images, "--backbone", vit_file]
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
    ("backbone", "options", "part"),
    [
        ("vit_smal_patch14", [], "vit_smal_patch14"),
        ("vit.pth", [], "--architecture"),
        ("vit_tiny_patch16_224", ["--image-size", "100"], " 64"),
        ("vit.pth", ["--architecture", "vit_tiny_patch16_224", "--images", "none"], "none"),
        ("resnet50", [], "resnet50"),
        ("nowhere/vit.pth", [], "nowhere/vit.pth"),
    ],
)
def test_wrong_commands(images, vit_file, tmp_path, monkeypatch, capsys, backbone, options, part):
    monkeypatch.chdir(vit_file.parent)
    command = [
        "pretrain",
        "--images",
        str(images),
        "--backbone",
        backbone,
        "--output",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert main([*command, *options]) == 1
    assert part in capsys.readouterr().err
