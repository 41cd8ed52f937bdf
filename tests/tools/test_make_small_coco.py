"""tools/make_small_coco.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from lift_det.data import DatasetError, check_coco, write_synthetic_coco

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_small_coco.py"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name="__main__")

    return run


def test_synthetic_images(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_synthetic_coco(tmp_path, num_train=40, num_val=1, image_size=64)
    arguments, small = (source / "annotations/instances_train.json", source / "train"), tmp_path / "small"
    make(*arguments, small, "--num-images", 12, "--num-classes", 3)
    printed = capsys.readouterr().out
    for split, count in (("train", 9), ("val", 3)):
        check = check_coco(small / f"my_{split}.json", small / "images")
        assert check.findings == [] and check.num_images == count and list(check.categories) == [1, 2, 3]
        assert {a["category_id"] for a in check.cleaned["annotations"]} == {1, 2, 3}
        assert f"my_{split}.json" in printed and f"{count} images" in printed
    assert len(list((small / "images").iterdir())) == 12, "no image is in both splits"
    with pytest.raises(DatasetError, match="5 classes"):
        make(*arguments, tmp_path / "none", "--num-classes", 5)
    with pytest.raises(ValueError, match="12"):
        make(*arguments, tmp_path / "none", "--num-images", 12, "--num-val", 12)


def test_real_images(make, shared: Path, tmp_path: Path) -> None:
    root = shared / "datasets" / "coco"
    make(root / "annotations/instances_val2017.json", root / "val2017", tmp_path)
    names = {1: "person", 2: "car", 3: "bottle", 4: "chair", 5: "dining table"}
    for split, count in (("train", 15), ("val", 5)):
        check = check_coco(tmp_path / f"my_{split}.json", tmp_path / "images", thing_classes=names)
        assert check.errors == check.skipped == [] and check.num_annotated_images == count
        assert {a["category_id"] for a in check.cleaned["annotations"]} == set(names)
