"""LVIS's figures: by hand on a few objects, and lvis-api's own where that package is installed."""

import itertools
import json
import math

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as UpstreamEvaluator
from detectron2.structures import Instances

from lift_det.data import write_synthetic_coco
from lift_det.evaluation import LVISEvaluator, perturbed_detections
from tests.evaluation.coco_predictions import evaluate, predict

_numbers = itertools.count()
FREQUENCIES = ("r", "c", "f", "f")


def _dataset(tmp_path, annotations):
    name = f"lvis_evaluation_{next(_numbers)}"
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(annotations))
    MetadataCatalog.get(name).set(json_file=str(path), thing_classes=[c["name"] for c in annotations["categories"]])
    return name


def _as_lvis(annotations):
    """COCO's annotations with what LVIS adds: how common a class is, and in which images it was looked for."""
    classes = [category["id"] for category in annotations["categories"]]
    for category, frequency in zip(annotations["categories"], FREQUENCIES, strict=True):
        category["frequency"] = frequency
    for image in annotations["images"]:
        there = {a["category_id"] for a in annotations["annotations"] if a["image_id"] == image["id"]}
        absent = [id_ for id_ in classes if id_ not in there]
        image["neg_category_ids"] = absent[: image["id"] % 2]
        image["not_exhaustive_category_ids"] = sorted(there)[: image["id"] % 3 == 0]
    return annotations


@pytest.fixture
def drawn(tmp_path):
    folder = write_synthetic_coco(tmp_path / "coco", num_train=1, num_val=12, image_size=96)
    return _as_lvis(json.loads((folder / "annotations" / "instances_val.json").read_text()))


def _object(number, image, category, box):
    x, y, width, height = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": width * height,
        "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
    }


def _detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_by_hand(tmp_path):
    size = {"height": 100, "width": 100}
    annotations = {
        "images": [
            {"id": 1, **size, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
            {"id": 2, **size, "neg_category_ids": [], "not_exhaustive_category_ids": [3]},
        ],
        "categories": [{"id": i, "name": f"class {i}", "frequency": f} for i, f in enumerate(FREQUENCIES, start=1)],
        "annotations": [
            _object(1, 1, 1, [10, 10, 20, 20]),
            _object(2, 2, 2, [10, 10, 20, 20]),
            _object(3, 2, 3, [10, 10, 20, 20]),
        ],
    }
    results = [
        # the rare class: found at an overlap of 0.8, that is at 7 of the 10 thresholds; in image 2 it was not looked
        # for, so that the surer detection there counts as nothing
        _detection(1, 1, [10, 10, 16, 20], 0.5),
        _detection(2, 1, [60, 60, 20, 20], 0.9),
        # the common class: found, after a surer one in image 1, where it is known to be absent: a precision of 1/2
        _detection(2, 2, [10, 10, 20, 20], 0.5),
        _detection(1, 2, [60, 60, 20, 20], 0.9),
        # the frequent class: found, after a surer one in an image where not all of its objects are drawn
        _detection(2, 3, [10, 10, 20, 20], 0.5),
        _detection(2, 3, [60, 60, 20, 20], 0.9),
    ]
    name = _dataset(tmp_path, annotations)
    figures = evaluate(LVISEvaluator(name), predict(annotations, results, None))
    assert list(figures) == ["bbox"]
    # 0.80 is a threshold, and the overlap is 320 / 400
    expected = {"APr": 70, "APc": 50, "APf": 100, "AP": (70 + 50 + 100) / 3, "AP75": 250 / 3, "APs": 220 / 3}
    assert {key: figures["bbox"][key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert math.isnan(figures["bbox"]["APl"])  # no large object
    capped = evaluate(LVISEvaluator(name, max_dets_per_image=1), predict(annotations, results, None))
    assert capped["bbox"]["APc"] == 0  # of an image's detections of all classes the surest


@pytest.mark.parametrize("max_dets", [None, 20])
def test_figures_and_files_are_lvis_apis(max_dets, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than numpy 1.24
    pytest.importorskip("lvis", reason="needs the package lvis to compare with (pip install --no-deps lvis)")
    name = _dataset(tmp_path, drawn)
    results = perturbed_detections(drawn, per_image=60, seed=1)
    pairs = predict(drawn, results, "bitmask")
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs"), max_dets_per_image=max_dets), pairs)
    ours = evaluate(LVISEvaluator(name, output_dir=str(tmp_path / "ours"), max_dets_per_image=max_dets), pairs)
    of_rle = evaluate(LVISEvaluator(name, max_dets_per_image=max_dets), predict(drawn, results, "rle"))
    assert list(ours) == list(of_rle) == list(theirs) == ["bbox", "segm"]
    for task in theirs:
        assert list(ours[task]) == list(theirs[task])
        for key, value in theirs[task].items():
            expected = math.nan if value == -100 else value
            assert ours[task][key] == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True), (task, key)
            assert of_rle[task][key] == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True), (task, key)
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}
    file = "lvis_instances_results.json"
    assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def test_proposals_need_no_lvis_either(drawn, tmp_path):
    pairs = []
    for inputs, output in predict(drawn, perturbed_detections(drawn, per_image=40), None):
        instances = output["instances"]
        proposals = Instances(instances.image_size, proposal_boxes=instances.pred_boxes)
        proposals.objectness_logits = instances.scores
        pairs.append((inputs, {"proposals": proposals}))
    figures = evaluate(LVISEvaluator(_dataset(tmp_path, drawn)), pairs)
    assert 20 < figures["box_proposals"]["AR@100"] < 100


def test_nothing_predicted_and_nothing_annotated(drawn, tmp_path):
    pairs = predict(drawn, [], "rle")
    figures = evaluate(LVISEvaluator(_dataset(tmp_path, drawn)), pairs)
    assert list(figures) == ["bbox"] and all(math.isnan(value) for value in figures["bbox"].values())
    results = perturbed_detections(drawn, per_image=2)
    name = _dataset(tmp_path, {**drawn, "annotations": []})
    evaluator = LVISEvaluator(name, output_dir=str(tmp_path / "output"))
    assert evaluate(evaluator, predict(drawn, results, "rle")) == {}
    assert len(json.loads((tmp_path / "output" / "lvis_instances_results.json").read_text())) == len(results)


def test_bad_input_says_why(drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    with pytest.raises(ValueError, match=r"tasks must be of \('bbox', 'segm'\)"):
        LVISEvaluator(name, ("keypoints",))
    pairs = predict(drawn, perturbed_detections(drawn, per_image=2), "rle")
    pairs[3][1]["instances"].pred_classes[0] = 4
    with pytest.raises(ValueError, match="has class 4, but the data set has the classes 0 to 3"):
        evaluate(LVISEvaluator(name), pairs)
    boxes = predict(drawn, perturbed_detections(drawn, per_image=2), None)
    with pytest.raises(ValueError, match="no 'segmentation', which the task 'segm' needs"):
        evaluate(LVISEvaluator(name, ("segm",)), boxes)
    broken = _dataset(tmp_path, drawn)
    (tmp_path / f"{broken}.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=f"{broken}.json, the annotations of '{broken}', is no LVIS JSON file"):
        LVISEvaluator(broken)
