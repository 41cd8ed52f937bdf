"""The tool writes what it prints; the choice of images is tested in tests/data."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from lift_det.data import check_coco, write_synthetic_coco

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_small_coco.py"


def test_writes_a_set_and_prints_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=20, num_val=1, image_size=64)
    arguments = [folder / "annotations/instances_train.json", folder / "train", tmp_path / "my"]
    numbers = ["--num-images", 8, "--num-classes", 2, "--num-val", 3]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments), *map(str, numbers)])
    runpy.run_path(str(TOOL), run_name="__main__")
    printed = capsys.readouterr().out
    for split, count in (("train", 5), ("val", 3)):
        check = check_coco(tmp_path / f"my/my_{split}.json", tmp_path / "my/images")
        assert check.num_images == count and list(check.categories) == [1, 2] and not check.findings
        assert f"my_{split}.json" in printed and f"{count} images" in printed
