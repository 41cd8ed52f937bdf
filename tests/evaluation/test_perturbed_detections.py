import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from lift_det.data import write_synthetic_coco
from lift_det.evaluation import perturbed_detections

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = write_synthetic_coco(tmp_path_factory.mktemp("coco"), num_train=1, num_val=4, image_size=96)
    return folder / "annotations" / "instances_val.json"


def test_detections_are_of_all_qualities_and_depend_on_the_seed(path):
    annotations = json.loads(path.read_text())
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] != 1]
    results = perturbed_detections(annotations, per_image=100, seed=3)
    assert [r["image_id"] for r in results] == [image["id"] for image in annotations["images"] for _ in range(100)]
    assert results == perturbed_detections(annotations, per_image=100, seed=3)
    assert results != perturbed_detections(annotations, per_image=100, seed=4)
    boxes = np.array([r["bbox"] for r in results])
    assert boxes.min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 96.01
    best = []
    for result in results[100:]:
        truth = [a for a in annotations["annotations"] if a["image_id"] == result["image_id"]]
        overlap = mask_util.iou([result["bbox"]], [a["bbox"] for a in truth], [0] * len(truth))[0]
        best.append((overlap.max(), truth[overlap.argmax()]["category_id"] == result["category_id"]))
    overlaps, right = np.array(best).T
    # from a tenth to most of what a threshold asks for, and wrong classes among the good ones
    assert 0.1 < (overlaps > 0.75).mean() < 0.7 and (overlaps < 0.5).mean() > 0.1
    assert 0.6 < right[overlaps > 0.75].mean() < 0.95
    # a mask is about as large as its box allows
    areas = np.array([mask_util.area(r["segmentation"]) for r in results])
    assert (areas <= 1.2 * boxes[:, 2] * boxes[:, 3] + 100).all() and (areas > 0).mean() > 0.95


@pytest.mark.parametrize(("change", "message"), [({"categories": []}, "no categories"), ({}, "must not be negative")])
def test_refuses(change, message, path):
    with pytest.raises(ValueError, match=message):
        perturbed_detections(json.loads(path.read_text()) | change, per_image=1 if change else -1)


def test_tools_write_and_compare(path, tmp_path, monkeypatch, capsys):
    output = tmp_path / "detections.json"
    for tool, *arguments in (
        ("make_detections.py", str(path), str(output), "--per-image=20"),
        ("benchmark_evaluation.py", str(path), str(output), "--rounds=1"),
    ):
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    assert json.loads(output.read_text()) == perturbed_detections(json.loads(path.read_text()), per_image=20)
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split("|") for line in printed if line.startswith("|") and "hotcoco" in line]
    assert [row[1].strip() for row in rows] == ["bbox, hotcoco", "segm, hotcoco"]
    for row in rows:
        assert float(row[5]) <= 1e-12 and float(row[6]) <= 1e-12
