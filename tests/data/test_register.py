"""Registered names, subsets, and the way of both through detectron2's own evaluation."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

import lift_det.data
from lift_det.data import DatasetError, get_dataset_dicts, register_coco_subset, write_synthetic_coco
from lift_det.data.register import COCO_TRAIN_OVERFIT8, COCO_VAL_FIRST2, register_all

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_COCO = REPOSITORY.parent / "shared" / "datasets" / "coco"
needs_coco = pytest.mark.skipif(not SHARED_COCO.is_dir(), reason="needs real COCO images in ../shared/datasets/coco")


@pytest.fixture
def new_names() -> Iterator[None]:
    """Takes off again what a test registers."""
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def register_synthetic_as(name: str, root: Path, **sizes: int) -> None:
    folder = write_synthetic_coco(root, **sizes)
    register_coco_instances(name, {}, str(folder / "annotations/instances_train.json"), str(folder / "train"))


def average_precisions(name: str, output_dir: Path) -> dict[str, float]:
    """Feeds the ground truth of a data set back to detectron2's evaluator as predictions."""
    evaluator = COCOEvaluator(name, output_dir=str(output_dir), distributed=False)
    evaluator.reset()
    for record in get_dataset_dicts(name, filter_empty=False):
        height, width = record["height"], record["width"]
        instances = Instances((height, width))
        annotations = record["annotations"]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.ones(len(annotations))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        masks = [
            mask_util.decode(mask_util.merge(mask_util.frPyObjects(a["segmentation"], height, width)))
            for a in annotations
        ]
        instances.pred_masks = torch.from_numpy(np.stack(masks).astype(bool))
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    return {task: results[task]["AP"] for task in ("bbox", "segm")}


def test_importing_registers_names_and_touches_no_file(tmp_path: Path) -> None:
    program = (
        "import os, lift_det.data\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "meta = MetadataCatalog.get('lift_det_synthetic_train')\n"
        "assert meta.thing_classes == ['circle', 'square', 'triangle', 'star'], meta\n"
        "assert meta.evaluator_type == 'coco'\n"
        "assert meta.json_file == 'somewhere/synthetic/annotations/instances_train.json', meta.json_file\n"
        "assert meta.image_root == 'somewhere/synthetic/train'\n"
        "assert {'lift_det_synthetic_val', 'coco_2017_train_overfit8', 'coco_2017_val_first2'} <= set(DatasetCatalog)\n"
        "assert os.listdir('.') == []\n"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": "somewhere", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_registering_again_changes_nothing() -> None:
    before = dict(DatasetCatalog)
    register_all()
    importlib.reload(lift_det.data)
    assert dict(DatasetCatalog) == before


def test_subset_keeps_order_and_metadata_but_has_no_file(tmp_path: Path, new_names: None) -> None:
    register_synthetic_as("shapes_source", tmp_path, num_train=6, num_val=1, image_size=64)
    register_coco_subset("shapes_subset", "shapes_source", [5, 2])
    register_coco_subset("shapes_subset_of_subset", "shapes_subset", [2])
    assert [record["image_id"] for record in DatasetCatalog.get("shapes_subset")] == [5, 2]
    assert [record["image_id"] for record in get_dataset_dicts("shapes_subset_of_subset")] == [2]
    source, subset = MetadataCatalog.get("shapes_source"), MetadataCatalog.get("shapes_subset")
    assert not hasattr(subset, "json_file")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "evaluator_type", "image_root"):
        assert getattr(subset, key) == getattr(source, key)
    register_coco_subset("shapes_subset", "shapes_source", [5, 2])  # the same again is no error
    with pytest.raises(DatasetError, match="already registered"):
        register_coco_subset("shapes_subset", "shapes_source", [5])


def test_subset_errors_say_what_is_missing(tmp_path: Path, new_names: None) -> None:
    register_synthetic_as("shapes_source", tmp_path, num_train=3, num_val=1, image_size=64)
    register_coco_subset("shapes_bad_subset", "shapes_source", [1, 77, 99])
    with pytest.raises(DatasetError, match=r"ids \[77, 99\]"):
        get_dataset_dicts("shapes_bad_subset")
    with pytest.raises(DatasetError, match="'nowhere', which is not registered"):
        register_coco_subset("shapes_other", "nowhere", [1])
    for ids in ([], [1, 1]):
        with pytest.raises(DatasetError, match="at least one image id and each only once"):
            register_coco_subset("shapes_other", "shapes_source", ids)


@pytest.mark.parametrize("subset", [False, True])
def test_ground_truth_of_the_synthetic_set_has_an_ap_of_100(tmp_path: Path, new_names: None, subset: bool) -> None:
    name = "shapes_source"
    register_synthetic_as(name, tmp_path / "data", num_train=40, num_val=1)
    if subset:
        register_coco_subset("shapes_subset", name, range(30, 10, -1))
        name = "shapes_subset"
    precisions = average_precisions(name, tmp_path / "output")
    assert precisions["bbox"] >= 99.9 and precisions["segm"] >= 99.9
    assert (tmp_path / "output" / "shapes_subset_coco_format.json").is_file() == subset


@needs_coco
@pytest.mark.parametrize(
    ("split", "image_ids"), [("train2017", COCO_TRAIN_OVERFIT8), ("val2017", COCO_VAL_FIRST2)], ids=["train", "val"]
)
def test_ground_truth_of_a_real_subset_has_an_ap_of_100(
    tmp_path: Path, new_names: None, split: str, image_ids: tuple[int, ...]
) -> None:
    json_file = SHARED_COCO / "annotations" / f"instances_{split}.json"
    register_coco_instances("real_source", {}, str(json_file), str(SHARED_COCO / split))
    register_coco_subset("real_subset", "real_source", image_ids)
    dicts = get_dataset_dicts("real_subset")
    assert [record["image_id"] for record in dicts] == list(image_ids)
    assert all(os.path.isfile(record["file_name"]) for record in dicts)
    precisions = average_precisions("real_subset", tmp_path)
    assert precisions["bbox"] >= 99.9 and precisions["segm"] >= 99.9


@needs_coco
def test_overfit_images_have_a_few_objects_that_are_not_tiny(new_names: None) -> None:
    json_file = SHARED_COCO / "annotations" / "instances_train2017.json"
    register_coco_instances("real_source", {}, str(json_file), str(SHARED_COCO / "train2017"))
    register_coco_subset("real_subset", "real_source", COCO_TRAIN_OVERFIT8)
    for record in get_dataset_dicts("real_subset"):
        annotations = record["annotations"]
        assert 2 <= len(annotations) <= 8
        assert all(a["iscrowd"] == 0 for a in annotations)
        assert min(a["bbox"][2] * a["bbox"][3] for a in annotations) >= 0.01 * record["height"] * record["width"]
