"""LVIS's figures: computed by hand for a few objects, and those of lvis-api if that package is installed."""

import json
import math

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as UpstreamEvaluator

from lift_det.evaluation import LVISEvaluator
from tests.evaluation.coco_predictions import (
    as_proposals,
    assert_same,
    assert_same_files,
    evaluate,
    perturbed_detections,
    predict,
)

FREQUENCIES = ("r", "c", "f", "f")


def register(folder, annotations):
    name = str(folder / f"{len(MetadataCatalog)}.json")
    (folder / name).write_text(json.dumps(annotations))
    MetadataCatalog.get(name).set(json_file=name, thing_classes=[c["name"] for c in annotations["categories"]])
    return name


@pytest.fixture
def lvis(annotations):
    """LVIS's additions to COCO: how frequent a class is, and the images in which it was annotated."""
    classes = [category["id"] for category in annotations["categories"]]
    for category, frequency in zip(annotations["categories"], FREQUENCIES, strict=True):
        category["frequency"] = frequency
    for image in annotations["images"]:
        present = {a["category_id"] for a in annotations["annotations"] if a["image_id"] == image["id"]}
        absent = [id_ for id_ in classes if id_ not in present]
        image["neg_category_ids"] = absent[: image["id"] % 2]
        image["not_exhaustive_category_ids"] = sorted(present)[: image["id"] % 3 == 0]
    return annotations


def test_by_hand(tmp_path):
    size = {"height": 100, "width": 100}
    box, elsewhere = [10, 10, 20, 20], [60, 60, 20, 20]
    truth = {"bbox": box, "area": 400, "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
    annotations = {
        "images": [
            {"id": 1, **size, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
            {"id": 2, **size, "neg_category_ids": [], "not_exhaustive_category_ids": [3]},
        ],
        "categories": [{"id": i, "name": f"class {i}", "frequency": f} for i, f in enumerate(FREQUENCIES, start=1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": i, **truth} for i, image in ((1, 1), (2, 2), (3, 2))
        ],
    }
    # The rare class is found at an IoU of 0.8, that is at 7 of the 10 thresholds, the others exactly. The detections
    # of higher scores are false for the common class, which image 1 does not have. They do not count for the rare
    # class, which is not annotated in image 2, and for the frequent class, of which image 2 may have more.
    detections = [(1, 1, [10, 10, 16, 20], 0.5), (2, 2, box, 0.5), (2, 3, box, 0.5)]
    detections += [(2, 1, elsewhere, 0.9), (1, 2, elsewhere, 0.9), (2, 3, elsewhere, 0.9)]
    results = [dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in detections]
    name, pairs = register(tmp_path, annotations), predict(annotations, results)
    figures = evaluate(LVISEvaluator(name), pairs)["bbox"]
    expected = {"APr": 70, "APc": 50, "APf": 100, "AP": 220 / 3, "AP75": 250 / 3, "APs": 220 / 3}
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert math.isnan(figures["APl"])  # no large object
    # only the highest score of each image counts
    assert evaluate(LVISEvaluator(name, max_dets_per_image=1), pairs)["bbox"]["APc"] == 0


@pytest.mark.parametrize("max_dets", [None, 20])
def test_figures_and_files_are_lvis_apis(max_dets, lvis, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than numpy 1.24
    pytest.importorskip("lvis", reason="needs the package lvis to compare with (pip install --no-deps lvis)")
    name = register(tmp_path, lvis)
    results = perturbed_detections(lvis, per_image=60, seed=1)
    pairs = predict(lvis, results, "bitmask")
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs"), max_dets_per_image=max_dets), pairs)
    theirs = {task: {k: math.nan if v == -100 else v for k, v in figures.items()} for task, figures in theirs.items()}
    for masks in ("bitmask", "rle"):
        evaluator = LVISEvaluator(name, output_dir=str(tmp_path / masks), max_dets_per_image=max_dets)
        assert_same(evaluate(evaluator, predict(lvis, results, masks)), theirs)
        assert_same_files(tmp_path / masks, tmp_path / "theirs", "lvis_instances_results.json")


def test_proposals_no_predictions_no_annotations_and_bad_input(lvis, tmp_path):
    name = register(tmp_path, lvis)
    results = perturbed_detections(lvis, per_image=40)
    assert 20 < evaluate(LVISEvaluator(name), as_proposals(predict(lvis, results)))["box_proposals"]["AR@100"] < 100
    figures = evaluate(LVISEvaluator(name), predict(lvis, [], "rle"))
    assert list(figures) == ["bbox"] and all(math.isnan(value) for value in figures["bbox"].values())
    evaluator = LVISEvaluator(register(tmp_path, {**lvis, "annotations": []}), output_dir=str(tmp_path / "output"))
    assert evaluate(evaluator, predict(lvis, results)) == {}
    assert len(json.loads((tmp_path / "output" / "lvis_instances_results.json").read_text())) == len(results)
    with pytest.raises(ValueError, match="keypoints"):
        LVISEvaluator(name, ("keypoints",))
    (tmp_path / name).write_text('{"images": [')
    with pytest.raises(ValueError, match=name):
        LVISEvaluator(name)
