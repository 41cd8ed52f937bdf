"""The COCO evaluator gives what detectron2's gives with pycocotools, to the last digit, and the same files."""

import contextlib
import copy
import io
import itertools
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator as UpstreamEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lift_det.data import write_synthetic_coco
from lift_det.evaluation import COCOEvaluator, instances_to_coco_json, perturbed_detections
from lift_det.evaluation.hotcoco_metrics import HotcocoGroundTruth
from tests.evaluation.coco_predictions import evaluate, predict, register

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-12
_numbers = itertools.count()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Annotations of 12 synthetic images, every class and every image with objects."""
    folder = write_synthetic_coco(tmp_path_factory.mktemp("coco"), num_train=1, num_val=12, image_size=96)
    return json.loads((folder / "annotations" / "instances_val.json").read_text())


def _with_crowd(annotations):
    """An object becomes a crowd whose mask, half the image, is uncompressed RLE as COCO's are; another is copied."""
    crowd = annotations["annotations"][0]
    crowd.update(iscrowd=1, bbox=[0, 0, 48, 96], area=48 * 96)
    crowd["segmentation"] = {"size": [96, 96], "counts": [0, 48 * 96, 48 * 96]}


def _without_objects(annotations):
    empty = {annotations["images"][0]["id"], annotations["images"][5]["id"]}
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] not in empty]


def _with_unseen_class(annotations):
    annotations["categories"].append({"id": 9, "name": "hexagon"})


def _without_small_objects(annotations):
    annotations["annotations"] = [a for a in annotations["annotations"] if a["area"] >= 32**2]


VARIANTS = {
    "plain": lambda annotations: None,
    "crowd": _with_crowd,
    "images without objects": _without_objects,
    "a class without objects": _with_unseen_class,
    "no small objects": _without_small_objects,
}


def _dataset(tmp_path, annotations):
    """Registers annotations under a new name."""
    name = f"coco_evaluation_{next(_numbers)}"
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(annotations))
    register(name, path)
    return name


def _assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for task in theirs:
        assert list(ours[task]) == list(theirs[task])
        for name, value in theirs[task].items():
            assert ours[task][name] == pytest.approx(value, rel=0, abs=TOLERANCE, nan_ok=True), (task, name)


def _twelve_by_pycocotools(annotations, results, iou_type):
    """(twelve figures, precision), from copies: pycocotools writes into what it is given."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(annotations)
        coco.createIndex()
        results = [{k: v for k, v in r.items() if k != "bbox" or iou_type == "bbox"} for r in results]
        evaluation = COCOeval(coco, coco.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_and_files_are_detectron2s(variant, drawn, tmp_path):
    annotations = copy.deepcopy(drawn)
    VARIANTS[variant](annotations)
    name = _dataset(tmp_path, annotations)
    results = perturbed_detections(annotations, per_image=30, seed=1)
    pairs = predict(annotations, results, "bitmask")
    folders = {kind: tmp_path / kind for kind in ("theirs", "ours", "rle", "pycocotools")}
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(folders["theirs"]), use_fast_impl=False), pairs)
    ours = evaluate(COCOEvaluator(name, output_dir=str(folders["ours"])), pairs)
    of_rle = evaluate(COCOEvaluator(name, output_dir=str(folders["rle"])), predict(annotations, results, "rle"))
    slow = evaluate(COCOEvaluator(name, output_dir=str(folders["pycocotools"]), implementation="pycocotools"), pairs)
    assert list(theirs) == ["bbox", "segm"] and 5 < theirs["segm"]["AP"] < 95
    assert len(theirs["bbox"]) == 6 + len(annotations["categories"])
    for other in (ours, of_rle, slow):
        _assert_same(other, theirs)
    for kind in ("ours", "rle", "pycocotools"):
        assert {p.name for p in folders[kind].iterdir()} == {p.name for p in folders["theirs"].iterdir()}
        file = "coco_instances_results.json"
        assert (folders[kind] / file).read_bytes() == (folders["theirs"] / file).read_bytes()
        file = "instances_predictions.pth"
        assert torch.load(folders[kind] / file) == torch.load(folders["theirs"] / file)
    if variant == "a class without objects":
        assert math.isnan(ours["bbox"]["AP-hexagon"])
    if variant == "no small objects":
        assert math.isnan(ours["bbox"]["APs"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_all_twelve_figures_and_every_precision_are_pycocotools(variant, iou_type, drawn):
    annotations = copy.deepcopy(drawn)
    VARIANTS[variant](annotations)
    results = perturbed_detections(annotations, per_image=120, seed=2)
    before = copy.deepcopy(results)
    stats, precision = _twelve_by_pycocotools(annotations, results, iou_type)
    ours = HotcocoGroundTruth(annotations, "synthetic").evaluate(results, iou_type)
    np.testing.assert_allclose(ours.stats, stats, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.eval["precision"], precision, rtol=0, atol=TOLERANCE)
    assert len(stats) == 12 and results == before


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_real_photographs(iou_type, shared):
    annotations = json.loads((shared / "datasets/coco/annotations/instances_val2017.json").read_text())
    results = perturbed_detections(annotations, per_image=60)
    stats, precision = _twelve_by_pycocotools(annotations, results, iou_type)
    ours = HotcocoGroundTruth(annotations, "val2017").evaluate(results, iou_type)
    assert any(a["iscrowd"] for a in annotations["annotations"])
    np.testing.assert_allclose(ours.stats, stats, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.eval["precision"], precision, rtol=0, atol=TOLERANCE)


def test_real_photographs_through_both_evaluators(shared, tmp_path):
    annotations = json.loads((shared / "datasets/coco/annotations/instances_val2017.json").read_text())
    name = _dataset(tmp_path, annotations)
    results = perturbed_detections(annotations, per_image=8)
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False), predict(annotations, results, "bitmask"))
    ours = evaluate(COCOEvaluator(name), predict(annotations, results, "rle"))
    assert len(theirs["segm"]) == 86
    _assert_same(ours, theirs)


def test_no_predictions(drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    pairs = predict(drawn, [], "rle")
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False), predict(drawn, [], "bitmask"))
    ours = evaluate(COCOEvaluator(name), pairs)
    _assert_same(ours, theirs)
    assert list(ours) == ["bbox"] and math.isnan(ours["bbox"]["AP"])
    # what a config asks for is there, too, and a model that saw no image says nothing
    assert list(evaluate(COCOEvaluator(name, ("bbox", "segm")), pairs)) == ["bbox", "segm"]
    assert evaluate(COCOEvaluator(name), []) == {}


def test_predictions_in_some_images_only(drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    results = [r for r in perturbed_detections(drawn, per_image=10) if r["image_id"] % 3]
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False), predict(drawn, results, "bitmask"))
    _assert_same(evaluate(COCOEvaluator(name), predict(drawn, results, "rle")), theirs)


@pytest.mark.parametrize("options", [{"max_dets_per_image": 5}, {"max_dets_per_image": 300}, {"tasks": ("bbox",)}])
def test_detectron2s_options(options, drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    pairs = predict(drawn, perturbed_detections(drawn, per_image=150), None)
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False, **options), pairs)
    _assert_same(evaluate(COCOEvaluator(name, **options), pairs), theirs)


@pytest.mark.parametrize("img_ids", [[1, 2, 5], [7, 3, 3], [2, 10**6], []])
def test_some_images_only(img_ids, drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    pairs = predict(drawn, perturbed_detections(drawn, per_image=20), None)
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False), pairs, img_ids=img_ids)
    _assert_same(evaluate(COCOEvaluator(name), pairs, img_ids=img_ids), theirs)


def test_evaluating_again_gives_the_same(drawn, tmp_path):
    evaluator = COCOEvaluator(_dataset(tmp_path, drawn))
    pairs = predict(drawn, perturbed_detections(drawn, per_image=10), "rle")
    first = evaluate(evaluator, pairs)
    _assert_same(evaluator.evaluate(), first)  # detectron2's maps the classes twice
    _assert_same(evaluate(evaluator, pairs), first)


def test_a_data_set_in_detectron2s_format_with_names_for_ids(tmp_path, drawn):
    results = perturbed_detections(drawn, per_image=20)
    names = {image["id"]: f"photo {image['id']}" for image in drawn["images"]}
    records = []
    for image in drawn["images"]:
        objects = [a for a in drawn["annotations"] if a["image_id"] == image["id"]]
        kept = [
            {
                "bbox": a["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": a["category_id"] - 1,
                "segmentation": a["segmentation"],
            }
            for a in objects
        ]
        size = {"height": image["height"], "width": image["width"]}
        records.append({"file_name": "", "image_id": names[image["id"]], **size, "annotations": kept})
    name = f"coco_evaluation_{next(_numbers)}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["circle", "square", "triangle", "star"])
    pairs = [({"image_id": names[i["image_id"]]}, output) for i, output in predict(drawn, results, "bitmask")]
    output_dir = str(tmp_path / "output")
    ours = evaluate(COCOEvaluator(name, output_dir=output_dir), pairs)
    theirs = evaluate(UpstreamEvaluator(name, output_dir=output_dir, use_fast_impl=False), pairs)
    _assert_same(ours, theirs)
    with pytest.raises(ValueError, match="output_dir must be provided"):
        MetadataCatalog.get(name).__dict__.pop("json_file")
        COCOEvaluator(name)


def test_box_proposals(drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    pairs = []
    for inputs, output in predict(drawn, perturbed_detections(drawn, per_image=40), None):
        instances = output["instances"]
        proposals = Instances(instances.image_size, proposal_boxes=instances.pred_boxes)
        proposals.objectness_logits = instances.scores
        pairs.append((inputs, {"proposals": proposals}))
    theirs = evaluate(UpstreamEvaluator(name, output_dir=str(tmp_path / "theirs")), pairs)
    ours = evaluate(COCOEvaluator(name, output_dir=str(tmp_path / "ours")), pairs)
    assert theirs["box_proposals"]["AR@100"] > 20
    _assert_same(ours, theirs)
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}


def test_a_test_set_without_annotations_has_files_and_no_figures(drawn, tmp_path):
    results = perturbed_detections(drawn, per_image=3)
    pairs = predict(drawn, results, "rle")
    name = _dataset(tmp_path, drawn)  # registered while it has annotations: detectron2 cannot read one without
    path = Path(MetadataCatalog.get(name).json_file)
    path.write_text(json.dumps({key: drawn[key] for key in ("images", "categories")}))
    assert evaluate(COCOEvaluator(name, output_dir=str(tmp_path / "output")), pairs) == {}
    assert len(json.loads((tmp_path / "output" / "coco_instances_results.json").read_text())) == len(results)


def test_two_processes_are_as_one(drawn, tmp_path):
    results = perturbed_detections(drawn, per_image=20)
    for file, content in (("annotations.json", drawn), ("results.json", results)):
        (tmp_path / file).write_text(json.dumps(content))
    command = [sys.executable, "tests/evaluation/coco_predictions.py"]
    arguments = ["2", str(tmp_path / "annotations.json"), str(tmp_path / "results.json"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, rank, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    ours = evaluate(COCOEvaluator(_dataset(tmp_path, drawn)), predict(drawn, results, "rle"))
    _assert_same(json.loads((tmp_path / "rank0.json").read_text()), ours)
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    assert len(json.loads((tmp_path / "output" / "coco_instances_results.json").read_text())) == len(results)


def _keypoints(drawn):
    """Annotations with the corners of each box as keypoints, and results with them a little off."""
    annotations = copy.deepcopy(drawn)
    annotations["annotations"] = [a for a in annotations["annotations"] if a["category_id"] == 1]
    annotations["categories"] = [
        {"id": 1, "name": "circle", "keypoints": ["a", "b"], "skeleton": []},
    ]
    for annotation in annotations["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation.update(keypoints=[x, y, 2, x + width, y + height, 2], num_keypoints=2)
    return annotations


def test_keypoints_are_pycocotools_own_in_either_case(drawn, tmp_path, caplog, monkeypatch):
    annotations = _keypoints(drawn)
    name = _dataset(tmp_path, annotations)
    pairs = predict(annotations, perturbed_detections(annotations, per_image=5), None)
    for _, output in pairs:
        boxes = output["instances"].pred_boxes.tensor
        visible = torch.ones(len(boxes), 1)
        output["instances"].pred_keypoints = torch.stack(
            [torch.cat([boxes[:, :2], visible], 1), torch.cat([boxes[:, 2:], visible], 1)], 1
        )
    options = {"kpt_oks_sigmas": (0.05, 0.1)}
    # detectron2's process writes into the keypoints that it is given
    theirs = evaluate(UpstreamEvaluator(name, use_fast_impl=False, **options), copy.deepcopy(pairs))
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO):
        ours = evaluate(COCOEvaluator(name, **options), copy.deepcopy(pairs))
    _assert_same(ours, theirs)
    assert 0 < ours["keypoints"]["AP"] < 100
    assert "Evaluating bbox with hotcoco" in caplog.text and "Evaluating keypoints with pycocotools" in caplog.text


def test_how_an_implementation_is_chosen(drawn, tmp_path, monkeypatch):
    name = _dataset(tmp_path, drawn)
    pairs = predict(drawn, perturbed_detections(drawn, per_image=3), "rle")
    with pytest.raises(ValueError, match="'hotcoco', 'pycocotools'.*got 'fast'"):
        COCOEvaluator(name, implementation="fast")
    with pytest.raises(ValueError, match="use_fast_impl=False asks for pycocotools"):
        COCOEvaluator(name, implementation="hotcoco", use_fast_impl=False)
    with pytest.raises(ValueError, match="tasks must be of"):
        COCOEvaluator(name, "bbox")
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # an import of it fails
    with pytest.raises(ImportError, match="pip install hotcoco.*implementation='pycocotools'"):
        COCOEvaluator(name)
    # neither needs it
    assert evaluate(COCOEvaluator(name, use_fast_impl=False), pairs)["segm"]["AP"] > 0
    assert evaluate(COCOEvaluator(name, implementation="pycocotools"), pairs)["segm"]["AP"] > 0


@pytest.mark.parametrize("content", ['{"images": [', "", "[1, 2]", "\x80\udc81"])
def test_a_broken_annotation_file_is_named(content, drawn, tmp_path):
    name = _dataset(tmp_path, drawn)
    path = Path(MetadataCatalog.get(name).json_file)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"{name}.json, the annotations of '{name}', is no COCO JSON file"):
        COCOEvaluator(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, r: a["annotations"][2].pop("area"), "Annotation 3 of .* has no 'area'"),
        (lambda a, r: a["annotations"][2].pop("bbox"), "Annotation 3 of .* has no 'bbox'"),
        (lambda a, r: a["annotations"][2].update(segmentation=[]), "annotation 3 of .* has none .*tasks=.'bbox'"),
        (lambda a, r: a.pop("categories"), "has no 'categories'"),
        (lambda a, r: a["images"].pop(0), "is of image 1, which is not in synthetic"),
        (lambda a, r: r[4].pop("segmentation"), "has no 'segmentation', which the task 'segm' needs"),
        (lambda a, r: r[4].update(score=math.nan), "NaN"),
    ],
)
def test_what_cannot_be_evaluated_says_why(damage, message, drawn):
    annotations, results = copy.deepcopy(drawn), perturbed_detections(drawn, per_image=2)
    damage(annotations, results)
    with pytest.raises(ValueError, match=message):
        HotcocoGroundTruth(annotations, "synthetic").evaluate(results, "segm")


def test_a_model_of_another_class_count_says_so(drawn, tmp_path):
    annotations = copy.deepcopy(drawn)
    annotations["categories"] = annotations["categories"][:2]
    annotations["annotations"] = [a for a in annotations["annotations"] if a["category_id"] < 3]
    name = _dataset(tmp_path, annotations)
    with pytest.raises(ValueError, match="has class [23], but the data set has the classes 0 to 1"):
        evaluate(COCOEvaluator(name), predict(drawn, perturbed_detections(drawn, per_image=5), None))


def test_missing_crowd_flags_are_zero_and_ids_are_only_names(drawn, monkeypatch, caplog):
    results = perturbed_detections(drawn, per_image=30)
    expected, _ = _twelve_by_pycocotools(drawn, results, "bbox")
    annotations = copy.deepcopy(drawn)
    for annotation in annotations["annotations"]:
        annotation["id"] -= 1  # 0 is the first: pycocotools would never match it
        del annotation["iscrowd"]
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    ours = HotcocoGroundTruth(annotations, "counted from 0").evaluate(results, "bbox")
    np.testing.assert_allclose(ours.stats, expected, rtol=0, atol=TOLERANCE)
    assert "counted from 0 have the id 0" in caplog.text


def test_rle_as_bytes_and_as_text():
    instances = Instances((4, 6), scores=torch.tensor([0.5, 0.25]), pred_classes=torch.tensor([1, 0]))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 4.0, 3.0], [0.0, 0.0, 1.0, 1.0]]))
    instances.pred_masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    instances.pred_masks[0, 1:3, 1:4] = True
    expected = instances_to_coco_json(instances, 7)
    masks = [result["segmentation"] for result in expected]
    instances.pred_masks_rle = [{**masks[0], "counts": masks[0]["counts"].encode()}, masks[1]]
    instances.pred_masks[:] = True  # the RLE comes first
    assert instances_to_coco_json(instances, 7) == expected
    assert instances_to_coco_json(instances[:0], 7) == []
    assert json.loads(json.dumps(expected)) == expected
