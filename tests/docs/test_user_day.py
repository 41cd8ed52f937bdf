"""`make test-docs`: the commands and examples of docs/getting_started.md in its order, offline, on small data."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from lift_det import load_lift
from lift_det.data import write_synthetic_coco
from tests.docs.documents import ROOT, commands, python_blocks

PAGE = "docs/getting_started.md"
VIT = "vit_small_patch14_dinov2.lvd142m"
# A barely trained detector has to find something, for its exported file to be compared.
THRESHOLD = "model.roi_heads.box_predictor.test_score_thresh=0.001"
# Arguments that shorten a subcommand.
SHORTER = {
    "train": f"--iterations 6 train.eval_period=6 train.checkpointer.period=6 {THRESHOLD}",
    "pretrain": "--iterations 4 --batch-size 2 --image-size 112",
    "features": "--size 112",
}


def write_inputs(folder: Path) -> None:
    """A data set, photographs, a video, and random weights in the cache of Hugging Face's hub."""
    (folder / "tools").symlink_to(ROOT / "tools")
    drawn = write_synthetic_coco(folder / "output/quickstart/datasets", num_train=1, num_val=24)
    shutil.copytree(drawn / "val", folder / "photos")
    photo = cv2.imread(str(min((folder / "photos").iterdir())))
    cv2.imwrite(str(folder / "photo.jpg"), cv2.resize(photo, (480, 360)))
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, photo.shape[1::-1])
    video.write(photo)
    video.release()
    repository = folder / "cache/hub" / f"models--{timm.get_pretrained_cfg(VIT).hf_hub_id.replace('/', '--')}"
    for name in ("refs", "snapshots/0"):
        (repository / name).mkdir(parents=True)
    (repository / "refs/main").write_text("0")
    torch.manual_seed(0)
    save_file(timm.create_model(VIT).state_dict(), repository / "snapshots/0/model.safetensors")


@pytest.mark.slow
@pytest.mark.docs_long
def test_user_day(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = str(ROOT)

    def run(*arguments: str | Path) -> None:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    for command in commands(PAGE):
        program, *words = shlex.split(command, comments=True)
        if program == "lift-det" and words != ["doctor"]:
            longer = ["--iterations", "12"] if "--resume" in words else []
            run(ROOT / "lift_det_cli.py", *words, *SHORTER.get(words[0], "").split(), *longer)
        elif program == "python" and words[0].endswith("small_coco.py") and "output" in words[1]:
            run(*words)
    for block in python_blocks(PAGE):
        run("-c", block)

    mine = tmp_path / "output/mine"
    records = [json.loads(line) for line in (mine / "metrics.json").read_text().splitlines()]
    losses = {record["iteration"]: record["total_loss"] for record in records if "total_loss" in record}
    assert max(losses) == 11 and all(map(math.isfinite, losses.values()))
    assert json.loads((mine / "inference/evaluation.json").read_text())["figures"]["bbox"]
    assert len(list((mine / "predictions").iterdir())) == 21  # 20 pictures and predictions.json
    features = np.load(tmp_path / "output/features/photo.npz")
    assert features["lift"].shape == features["true"].shape == features["bilinear"].shape
    assert load_lift(tmp_path / "output/lift/lift.safetensors").trained_on.in_channels == 384
    names = ("output/mine/plot.png", "predictions/clip.mp4", "predictions/predictions.json")
    for name in (*names, "features.onnx", "backbone.pt2", "detector.onnx"):
        assert (tmp_path / name).stat().st_size > 0
