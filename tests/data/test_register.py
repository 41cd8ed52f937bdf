"""Registered datasets and subsets."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

import lift_det.data
from lift_det.data import DatasetError, get_dataset_dicts, register_coco_subset, write_synthetic_coco


@pytest.fixture
def source(tmp_path: Path) -> Iterator[str]:
    """The registered name of a synthetic dataset; restores the catalogs."""
    before = set(DatasetCatalog.keys())
    folder = write_synthetic_coco(tmp_path / "data", num_train=30, num_val=1)
    register_coco_instances(
        "shapes_source", {}, str(folder / "annotations/instances_train.json"), str(folder / "train")
    )
    yield "shapes_source"
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def average_precision(name: str, output_dir: Path) -> float:
    """The box AP of a dataset's ground truth as predictions."""
    evaluator = COCOEvaluator(name, output_dir=str(output_dir), distributed=False)
    evaluator.reset()
    for record in get_dataset_dicts(name, filter_empty=False):
        annotations = record["annotations"]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes))
        instances.scores = torch.ones(len(annotations))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP"]


def test_importing_registers_names_and_reads_no_file(tmp_path: Path) -> None:
    program = (
        "import os, lift_det.data\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "meta = MetadataCatalog.get('lift_det_synthetic_train')\n"
        "assert meta.thing_classes == ['circle', 'square', 'triangle', 'star'], meta\n"
        "assert meta.json_file == 'somewhere/synthetic/annotations/instances_train.json', meta.json_file\n"
        "assert meta.image_root == 'somewhere/synthetic/train'\n"
        "assert {'lift_det_synthetic_val', 'coco_2017_train_overfit8', 'coco_2017_val_first2'} <= set(DatasetCatalog)\n"
        "assert os.listdir('.') == []\n"
    )
    repository = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "DETECTRON2_DATASETS": "somewhere", "PYTHONPATH": repository}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    importlib.reload(lift_det.data)  # registers nothing twice


def test_subsets(source: str, tmp_path: Path) -> None:
    register_coco_subset("shapes_subset", source, range(30, 10, -1))
    register_coco_subset("shapes_subset_of_subset", "shapes_subset", [12])
    assert [record["image_id"] for record in get_dataset_dicts("shapes_subset")] == list(range(30, 10, -1))
    assert [record["image_id"] for record in get_dataset_dicts("shapes_subset_of_subset")] == [12]
    subset = MetadataCatalog.get("shapes_subset")
    assert not hasattr(subset, "json_file")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "evaluator_type", "image_root"):
        assert getattr(subset, key) == getattr(MetadataCatalog.get(source), key)
    assert average_precision("shapes_subset", tmp_path / "evaluation") >= 99.9


def test_invalid_subsets_are_errors(source: str) -> None:
    register_coco_subset("shapes_subset", source, [5, 2])
    register_coco_subset("shapes_subset", source, [5, 2])
    with pytest.raises(DatasetError, match="shapes_subset"):
        register_coco_subset("shapes_subset", source, [5])
    register_coco_subset("shapes_bad_subset", source, [1, 77, 99])
    with pytest.raises(DatasetError, match=r"\[77, 99\]"):
        get_dataset_dicts("shapes_bad_subset")
    with pytest.raises(DatasetError, match="nowhere"):
        register_coco_subset("shapes_other", "nowhere", [1])
    for ids in ([], [1, 1]):
        with pytest.raises(DatasetError, match="shapes_other"):
            register_coco_subset("shapes_other", source, ids)
