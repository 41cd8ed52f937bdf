"""The COCO evaluator against detectron2's with pycocotools: equal figures and files."""

import contextlib
import copy
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as UpstreamEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lift_det.evaluation import COCOEvaluator
from lift_det.evaluation.hotcoco_metrics import evaluate_with_hotcoco
from tests.evaluation.coco_predictions import (
    as_proposals,
    assert_same,
    assert_same_files,
    evaluate,
    perturbed_detections,
    predict,
    register,
)


def make_difficult(annotations):
    """A crowd with uncompressed RLE, two images without objects, a class without objects, no small objects."""
    crowd = annotations["annotations"][0]
    crowd.update(iscrowd=1, bbox=[0, 0, 48, 96], area=48 * 96)
    crowd["segmentation"] = {"size": [96, 96], "counts": [0, 48 * 96, 48 * 96]}
    empty = {annotations["images"][1]["id"], annotations["images"][5]["id"]}
    annotations["annotations"] = [
        a for a in annotations["annotations"] if a["image_id"] not in empty and a["area"] >= 32**2
    ]
    annotations["categories"].append({"id": 9, "name": "hexagon"})


def test_figures_and_files_are_detectron2s(annotations, tmp_path):
    make_difficult(annotations)
    name = register(tmp_path, annotations)
    results = perturbed_detections(annotations, per_image=30, seed=1)
    pairs = predict(annotations, results, "bitmask")
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs"), use_fast_impl=False), pairs)
    assert list(theirs) == ["bbox", "segm"] and 5 < theirs["segm"]["AP"] < 95
    assert len(theirs["bbox"]) == 6 + 5 and math.isnan(theirs["bbox"]["AP-hexagon"])
    for masks, implementation in (("bitmask", None), ("rle", None), ("rle", "pycocotools")):
        folder = tmp_path / f"{masks} {implementation}"
        evaluator = COCOEvaluator(name, output_dir=str(folder), implementation=implementation)
        assert_same(evaluate(evaluator, predict(annotations, results, masks)), theirs)
        assert_same(evaluator.evaluate(), theirs)  # again
        assert_same_files(folder, tmp_path / "theirs", "coco_instances_results.json")


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("kind", ["easy", "difficult", "strings as image ids", "photographs"])
def test_all_figures_and_every_precision_are_pycocotools(kind, task, annotations, request):
    if kind == "photographs":
        path = request.getfixturevalue("shared") / "datasets/coco/annotations/instances_val2017.json"
        annotations = json.loads(path.read_text())
        assert any(a["iscrowd"] for a in annotations["annotations"])
    if kind == "difficult":
        make_difficult(annotations)
    results = perturbed_detections(annotations, per_image=60, seed=2)
    if kind == "strings as image ids":
        for record in results + annotations["annotations"]:
            record["image_id"] = f"photo {record['image_id']}"
        for image in annotations["images"]:
            image["id"] = f"photo {image['id']}"
    before = copy.deepcopy(results)
    ours = evaluate_with_hotcoco(annotations, results, task, "file")
    assert len(ours.stats) == 12 and results == before
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = annotations  # pycocotools modifies both
        coco.createIndex()
        loaded = coco.loadRes([{k: v for k, v in r.items() if k != "bbox" or task == "bbox"} for r in results])
        expected = COCOeval(coco, loaded, task)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    np.testing.assert_allclose(ours.stats, expected.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.eval["precision"], expected.eval["precision"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("per_image", "options", "img_ids"),
    [
        (110, {"max_dets_per_image": 5}, None),
        (110, {"max_dets_per_image": 300, "tasks": ("bbox",)}, None),
        (110, {}, [7, 3, 3, 10**6]),
        (0, {}, None),
        (0, {"tasks": ("bbox", "segm")}, []),
    ],
)
def test_detectron2s_options_and_no_predictions(per_image, options, img_ids, annotations, tmp_path):
    name = register(tmp_path, annotations)
    results = [r for r in perturbed_detections(annotations, per_image=110) if r["image_id"] % 3][: 1000 * per_image]
    theirs = UpstreamEvaluator(name, use_fast_impl=False, **options)
    theirs = evaluate(theirs, predict(annotations, results, "bitmask"), img_ids=img_ids)
    ours = evaluate(COCOEvaluator(name, **options), predict(annotations, results, "rle"), img_ids=img_ids)
    assert_same(ours, theirs)
    assert math.isnan(ours["bbox"]["AP"]) == (not results)


def test_box_proposals(annotations, tmp_path):
    name = register(tmp_path, annotations)
    pairs = as_proposals(predict(annotations, perturbed_detections(annotations, per_image=40)))
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs")), pairs)
    ours = evaluate(COCOEvaluator(name, output_dir=str(tmp_path / "ours")), pairs)
    assert theirs["box_proposals"]["AR@100"] > 20
    assert_same(ours, theirs)
    assert_same_files(tmp_path / "ours", tmp_path / "theirs", "box_proposals.pkl")


def test_keypoints_are_pycocotools(annotations, tmp_path):
    annotations["annotations"] = [a for a in annotations["annotations"] if a["category_id"] == 1]
    annotations["categories"] = [{"id": 1, "name": "circle", "keypoints": ["a"], "skeleton": []}]
    for annotation in annotations["annotations"]:
        annotation.update(keypoints=[*annotation["bbox"][:2], 2], num_keypoints=1)
    name = register(tmp_path, annotations)
    pairs = predict(annotations, perturbed_detections(annotations, per_image=5))
    for _, output in pairs:
        corners = output["instances"].pred_boxes.tensor[:, None, :2]
        output["instances"].pred_keypoints = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=2)
    # detectron2 modifies the keypoints
    evaluator = UpstreamEvaluator(name, use_fast_impl=False, kpt_oks_sigmas=(0.1,))
    theirs = evaluate(evaluator, copy.deepcopy(pairs))
    assert 0 < theirs["keypoints"]["AP"] < 100
    assert_same(evaluate(COCOEvaluator(name, kpt_oks_sigmas=(0.1,)), pairs), theirs)


def test_missing_hotcoco_is_not_replaced(annotations, tmp_path, monkeypatch):
    name = register(tmp_path, annotations)
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # an import of it fails
    with pytest.raises(ImportError, match="hotcoco"):
        COCOEvaluator(name)
    pairs = predict(annotations, perturbed_detections(annotations, per_image=3), "rle")
    assert evaluate(COCOEvaluator(name, use_fast_impl=False), pairs)["segm"]["AP"] > 0


def test_bad_arguments_and_annotation_files(annotations, tmp_path):
    name = register(tmp_path, annotations)
    for options in ({"implementation": "fast"}, {"tasks": "bbox"}):  # a string, not a sequence
        with pytest.raises(ValueError, match=next(iter(options.values()))):
            COCOEvaluator(name, **options)
    for content in (b'{"images": [', b"[1, 2]", b"\x80"):
        Path(MetadataCatalog.get(name).json_file).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.json"):
            COCOEvaluator(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, r: a["annotations"][2].pop("area"), "3.*file.*area"),
        (lambda a, r: a["annotations"][2].update(segmentation=[]), "3.*file.*segmentation"),
        (lambda a, r: a["images"].pop(0), "1.*file"),
        (lambda a, r: r[4].update(score=math.nan), "NaN"),
    ],
)
def test_bad_annotations_and_results(damage, message, annotations):
    results = perturbed_detections(annotations, per_image=2)
    damage(annotations, results)
    with pytest.raises(ValueError, match=message):
        evaluate_with_hotcoco(annotations, results, "segm", "file")


def test_predictions_of_another_model(annotations, tmp_path):
    pairs = predict(annotations, perturbed_detections(annotations, per_image=5))
    with pytest.raises(ValueError, match="1.*segmentation"):  # has no masks
        evaluate(COCOEvaluator(register(tmp_path, annotations), ("segm",)), pairs)
    two = {**annotations, "categories": annotations["categories"][:2]}
    two["annotations"] = [a for a in annotations["annotations"] if a["category_id"] < 3]
    with pytest.raises(ValueError, match="class [23]"):  # has four classes
        evaluate(COCOEvaluator(register(tmp_path, two)), pairs)


@pytest.mark.parametrize("change", [{"id": 0}, {"id": 1}])
def test_annotation_ids_need_not_be_unique_and_crowd_flags_are_optional(change, annotations):
    results = perturbed_detections(annotations, per_image=30)
    expected = evaluate_with_hotcoco(annotations, results, "bbox", "file").stats
    for annotation in annotations["annotations"]:
        annotation.update(change)
        del annotation["iscrowd"]
    np.testing.assert_array_equal(evaluate_with_hotcoco(annotations, results, "bbox", "file").stats, expected)
