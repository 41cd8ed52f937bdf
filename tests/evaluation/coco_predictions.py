"""Datasets, models' outputs and evaluations for the tests of the evaluators."""

import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

TOOLS = Path(__file__).resolve().parents[2] / "tools"
perturbed_detections = runpy.run_path(str(TOOLS / "make_detections.py"))["perturbed_detections"]
_numbers = itertools.count()


def register(folder, annotations):
    """Registers annotations of images that need not exist, and returns the name."""
    name = f"evaluation_{next(_numbers)}"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(annotations))
    register_coco_instances(name, {}, str(path), "")
    DatasetCatalog.get(name)  # sets the class names
    return name


def predict(annotations, results, masks=None):
    """Inputs and outputs of a model with these COCO results; masks: 'bitmask', 'rle' or None."""
    classes = {id_: i for i, id_ in enumerate(sorted(c["id"] for c in annotations["categories"]))}
    pairs = []
    for image in annotations["images"]:
        found = [result for result in results if result["image_id"] == image["id"]]
        size = (image["height"], image["width"])
        boxes = torch.tensor([result["bbox"] for result in found]).reshape(-1, 4)
        instances = Instances(size, pred_boxes=Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)))
        instances.scores = torch.tensor([result["score"] for result in found])
        instances.pred_classes = torch.tensor([classes[r["category_id"]] for r in found], dtype=torch.long)
        if masks == "rle":
            rles = [result["segmentation"] for result in found]
            instances.pred_masks_rle = [{**rle, "counts": rle["counts"].encode()} for rle in rles]
        if masks == "bitmask":
            decoded = [mask_util.decode(result["segmentation"]) for result in found]
            instances.pred_masks = torch.from_numpy(np.array(decoded, dtype=bool).reshape(len(found), *size))
        pairs.append(({"image_id": image["id"]}, {"instances": instances}))
    return pairs


def as_proposals(pairs):
    """The boxes of such outputs as box proposals."""
    proposals = []
    for inputs, output in pairs:
        found = output["instances"]
        fields = {"proposal_boxes": found.pred_boxes, "objectness_logits": found.scores}
        proposals.append((inputs, {"proposals": Instances(found.image_size, **fields)}))
    return proposals


def evaluate(evaluator, pairs, **kwargs):
    """Figures of an evaluator for such inputs and outputs, in batches of two."""
    evaluator.reset()
    for start in range(0, len(pairs), 2):
        evaluator.process(*zip(*pairs[start : start + 2], strict=True))
    return evaluator.evaluate(**kwargs)


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for task, figures in theirs.items():
        assert list(ours[task]) == list(figures)
        assert ours[task] == pytest.approx(figures, rel=0, abs=1e-12, nan_ok=True), task


def assert_same_files(ours, theirs, content):
    """The same files in two folders, with equal bytes in the one named ``content``."""
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert (ours / content).read_bytes() == (theirs / content).read_bytes()
