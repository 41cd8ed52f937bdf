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
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lift_det.evaluation import COCOEvaluator, instances_to_coco_json
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


def assert_pycocotools_figures(annotations, results, task):
    """All twelve figures and every precision; pycocotools gets copies, because it modifies its input."""
    kept = [{k: v for k, v in result.items() if k != "bbox" or task == "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(annotations)
        coco.createIndex()
        expected = COCOeval(coco, coco.loadRes(kept), task)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    before = copy.deepcopy(results)
    ours = evaluate_with_hotcoco(annotations, results, task, "file")
    np.testing.assert_allclose(ours.stats, expected.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.eval["precision"], expected.eval["precision"], rtol=0, atol=1e-12)
    assert len(ours.stats) == 12 and results == before


@pytest.mark.parametrize("difficult", [False, True])
def test_figures_and_files_are_detectron2s(difficult, annotations, tmp_path):
    if difficult:
        make_difficult(annotations)
    name = register(tmp_path, annotations)
    results = perturbed_detections(annotations, per_image=30, seed=1)
    pairs = predict(annotations, results, "bitmask")
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs"), use_fast_impl=False), pairs)
    assert list(theirs) == ["bbox", "segm"] and 5 < theirs["segm"]["AP"] < 95
    assert len(theirs["bbox"]) == 6 + len(annotations["categories"])
    for masks, implementation in (("bitmask", None), ("rle", None), ("rle", "pycocotools")):
        folder = tmp_path / f"{masks} {implementation}"
        evaluator = COCOEvaluator(name, output_dir=str(folder), implementation=implementation)
        ours = evaluate(evaluator, predict(annotations, results, masks))
        assert_same(ours, theirs)
        assert_same(evaluator.evaluate(), theirs)  # again
        assert_same_files(folder, tmp_path / "theirs", "coco_instances_results.json")
        assert math.isnan(ours["bbox"].get("AP-hexagon", 0)) == math.isnan(ours["bbox"]["APs"]) == difficult


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_all_figures_and_every_precision_are_pycocotools(task, annotations):
    results = perturbed_detections(annotations, per_image=120, seed=2)
    assert_pycocotools_figures(annotations, results, task)
    make_difficult(annotations)
    assert_pycocotools_figures(annotations, results, task)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_real_photographs(task, shared):
    annotations = json.loads((shared / "datasets/coco/annotations/instances_val2017.json").read_text())
    assert any(a["iscrowd"] for a in annotations["annotations"])
    assert_pycocotools_figures(annotations, perturbed_detections(annotations, per_image=60), task)


@pytest.mark.parametrize(
    ("options", "img_ids"),
    [
        ({"max_dets_per_image": 5}, None),
        ({"max_dets_per_image": 300}, None),
        ({"tasks": ("bbox",)}, None),
        ({}, [1, 2, 5]),
        ({}, [7, 3, 3]),
        ({}, [2, 10**6]),
        ({}, []),
    ],
)
def test_detectron2s_options(options, img_ids, annotations, tmp_path):
    name = register(tmp_path, annotations)
    results = [r for r in perturbed_detections(annotations, per_image=110) if r["image_id"] % 3]
    pairs = predict(annotations, results)
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False, **options), pairs, img_ids=img_ids)
    assert_same(evaluate(COCOEvaluator(name, **options), pairs, img_ids=img_ids), theirs)


def test_no_predictions(annotations, tmp_path):
    name = register(tmp_path, annotations)
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False), predict(annotations, [], "bitmask"))
    pairs = predict(annotations, [], "rle")
    ours = evaluate(COCOEvaluator(name), pairs)
    assert_same(ours, theirs)
    assert list(ours) == ["bbox"] and math.isnan(ours["bbox"]["AP"])
    assert list(evaluate(COCOEvaluator(name, ("bbox", "segm")), pairs)) == ["bbox", "segm"]
    assert evaluate(COCOEvaluator(name), []) == {}


def test_strings_as_image_ids(annotations, tmp_path):
    results = perturbed_detections(annotations, per_image=20)
    for record in results + annotations["annotations"]:
        record["image_id"] = f"photo {record['image_id']}"
    for image in annotations["images"]:
        image["id"] = f"photo {image['id']}"
    name = register(tmp_path, annotations)
    pairs = predict(annotations, results, "bitmask")
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False), pairs)
    assert theirs["segm"]["AP"] > 5
    assert_same(evaluate(COCOEvaluator(name), pairs), theirs)


def test_box_proposals(annotations, tmp_path):
    name = register(tmp_path, annotations)
    pairs = as_proposals(predict(annotations, perturbed_detections(annotations, per_image=40)))
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs")), pairs)
    ours = evaluate(COCOEvaluator(name, output_dir=str(tmp_path / "ours")), pairs)
    assert theirs["box_proposals"]["AR@100"] > 20
    assert_same(ours, theirs)
    assert_same_files(tmp_path / "ours", tmp_path / "theirs", "box_proposals.pkl")


def test_test_set_without_annotations_has_files_but_no_figures(annotations, tmp_path):
    name = register(tmp_path, annotations)  # with annotations, because detectron2 cannot register it without
    content = {key: annotations[key] for key in ("images", "categories")}
    Path(MetadataCatalog.get(name).json_file).write_text(json.dumps(content))
    pairs = predict(annotations, perturbed_detections(annotations, per_image=3), "rle")
    assert evaluate(COCOEvaluator(name, output_dir=str(tmp_path / "output")), pairs) == {}
    assert len(json.loads((tmp_path / "output" / "coco_instances_results.json").read_text())) == 3 * 12


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


def test_choice_of_the_implementation(annotations, tmp_path, monkeypatch):
    name = register(tmp_path, annotations)
    pairs = predict(annotations, perturbed_detections(annotations, per_image=3), "rle")
    with pytest.raises(ValueError, match="fast"):
        COCOEvaluator(name, implementation="fast")
    with pytest.raises(ValueError, match="segm"):
        COCOEvaluator(name, "bbox")  # a string, not a sequence
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # an import of it fails
    with pytest.raises(ImportError, match="pip install hotcoco.*implementation='pycocotools'"):
        COCOEvaluator(name)
    for options in ({"use_fast_impl": False}, {"implementation": "pycocotools"}):
        assert evaluate(COCOEvaluator(name, **options), pairs)["segm"]["AP"] > 0


@pytest.mark.parametrize("content", [b'{"images": [', b"", b"[1, 2]", b"\x80"])
def test_broken_annotation_file_is_named(content, annotations, tmp_path):
    name = register(tmp_path, annotations)
    Path(MetadataCatalog.get(name).json_file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}\.json"):
        COCOEvaluator(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, r: a["annotations"][2].pop("area"), "Annotation 3 of file.*'area'"),
        (lambda a, r: a["annotations"][2].pop("bbox"), "Annotation 3 of file.*'bbox'"),
        (lambda a, r: a["annotations"][2].update(segmentation=[]), "Annotation 3 of file.*'segmentation'"),
        (lambda a, r: a["images"].pop(0), "image 1,.*file"),
        (lambda a, r: r[4].update(score=math.nan), "NaN"),
    ],
)
def test_bad_input_is_named(damage, message, annotations):
    results = perturbed_detections(annotations, per_image=2)
    damage(annotations, results)
    with pytest.raises(ValueError, match=message):
        evaluate_with_hotcoco(annotations, results, "segm", "file")


def test_predictions_of_another_model_are_refused(annotations, tmp_path):
    results = perturbed_detections(annotations, per_image=5)
    with pytest.raises(ValueError, match="image 1 .*'segmentation'"):
        evaluate(COCOEvaluator(register(tmp_path, annotations), ("segm",)), predict(annotations, results))
    two = copy.deepcopy(annotations)
    two["categories"] = two["categories"][:2]
    two["annotations"] = [a for a in two["annotations"] if a["category_id"] < 3]
    with pytest.raises(ValueError, match="class [23]"):
        evaluate(COCOEvaluator(register(tmp_path, two)), predict(annotations, results))


@pytest.mark.parametrize("change", [{"id": 0}, {"id": 1}])
def test_annotation_ids_need_not_be_unique_and_crowd_flags_are_optional(change, annotations):
    results = perturbed_detections(annotations, per_image=30)
    expected = evaluate_with_hotcoco(annotations, results, "bbox", "file").stats
    for annotation in annotations["annotations"]:
        annotation.update(change)
        del annotation["iscrowd"]
    np.testing.assert_array_equal(evaluate_with_hotcoco(annotations, results, "bbox", "file").stats, expected)


def test_rle_as_bytes_and_as_text():
    instances = Instances((4, 6), scores=torch.tensor([0.5, 0.25]), pred_classes=torch.tensor([1, 0]))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 4.0, 3.0], [0.0, 0.0, 1.0, 1.0]]))
    instances.pred_masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    instances.pred_masks[0, 1:3, 1:4] = True
    expected = instances_to_coco_json(instances, 7)
    masks = [result["segmentation"] for result in expected]
    instances.pred_masks_rle = [{**masks[0], "counts": masks[0]["counts"].encode()}, masks[1]]
    instances.pred_masks[:] = True  # the RLE has precedence
    assert instances_to_coco_json(instances, 7) == expected
    assert instances_to_coco_json(instances[:0], 7) == []
