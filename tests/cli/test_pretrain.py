"""`lift-det pretrain`, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from lift_det import load_lift
from lift_det.cli import main
from lift_det.data import write_synthetic_coco

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_synthetic_coco(root, num_train=40, num_val=2)
    return root / "synthetic" / "train"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    return path


def _run(*arguments, code=0):
    command = [sys.executable, str(ROOT / "lift_det_cli.py"), "pretrain", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_trains_prints_its_table_and_goes_on(images, weights, tmp_path):
    command = ["--images", images, "--backbone", weights, "--architecture", "vit_tiny_patch16_224", "--device", "cpu"]
    command += ["--output", tmp_path / "out", "--image-size", 64, "--facet", "key", "--layer", 10]
    done = _run(*command, "--steps", 3)
    lines = done.stdout.splitlines()
    (bilinear,) = (line for line in lines if line.startswith("| bilinear"))
    (lift,) = (line for line in lines if line.startswith("| LiFT "))
    assert "%" in lift and "%" not in bilinear and str(tmp_path / "out" / "lift.safetensors") in done.stdout
    assert "3/3" in done.stderr and "detectron2" not in done.stdout  # its log is in the file
    assert "Environment info" in (tmp_path / "out" / "log.txt").read_text()
    metadata = load_lift(tmp_path / "out" / "lift.safetensors").metadata
    assert metadata["steps"] == "3" and metadata["backbone"] == "vit_tiny_patch16_224"
    assert (metadata["layer"], metadata["facet"], metadata["final_norm"]) == ("10", "key", "false")
    # two of 40 are kept for the evaluation
    assert metadata["evaluated_images"] == "2"
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert f"{last['cosine_2x/bilinear']:.4f}" in bilinear and f"{last['cosine_4x/lift']:.4f}" in lift

    _run(*command, "--steps", 5, "--resume")
    metadata = load_lift(tmp_path / "out" / "lift.safetensors").metadata
    assert metadata["steps"] == "5"


def test_explains_what_is_wrong(images, weights, tmp_path, capsys):
    common = ["--output", str(tmp_path), "--device", "cpu"]

    def error(*arguments):
        assert main(["pretrain", *map(str, arguments), *common]) == 1
        return capsys.readouterr().err

    assert "no model 'vit_smal_patch14'" in error("--images", images, "--backbone", "vit_smal_patch14")
    # heads are not guessed
    assert "--architecture" in error("--images", images, "--backbone", weights)
    assert "multiple of 64" in error("--images", images, "--backbone", "vit_tiny_patch16_224", "--image-size", "100")
    missing = error("--images", tmp_path / "none", "--backbone", weights, "--architecture", "vit_tiny_patch16_224")
    assert "does not exist" in missing
    assert "not supported" in error("--images", images, "--backbone", "resnet50")
    assert "There is no checkpoint at" in error("--images", images, "--backbone", "nowhere/weights.pth")
