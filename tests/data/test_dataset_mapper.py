"""The mapper returns the same as detectron2's, and its errors name the image."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper as UpstreamMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json

from lift_det.data import DatasetError, DatasetMapper, write_synthetic_coco


@pytest.fixture
def record(tmp_path: Path) -> dict:
    folder = write_synthetic_coco(tmp_path, num_train=1, num_val=1, image_size=64)
    record = load_coco_json(str(folder / "annotations/instances_train.json"), str(folder / "train"))[0]
    return {**record, "annotations": [{**a, "category_id": a["category_id"] - 1} for a in record["annotations"]]}


def mapper(cls: type = DatasetMapper, **changes: object) -> UpstreamMapper:
    augmentations = [T.ResizeShortestEdge(96, 200)]
    arguments = {"augmentations": augmentations, "image_format": "BGR", "use_instance_mask": True, **changes}
    return cls(True, **arguments)


def error_of(record: dict) -> str:
    with pytest.raises(DatasetError) as caught:
        mapper()(record)
    return str(caught.value)


def test_returns_what_detectron2_returns(record: dict) -> None:
    before = copy.deepcopy(record)
    ours, theirs = mapper()(record), mapper(UpstreamMapper)(record)
    assert record == before and ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"]) and ours["image"].shape == (3, 96, 96)
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 80
    assert DatasetMapper(cfg, is_train=False)(record)["image"].shape == (3, 80, 80)


def test_unreadable_images_are_named(record: dict, tmp_path: Path) -> None:
    path = Path(record["file_name"])
    (tmp_path / "map.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "map.png" in error_of({**record, "sem_seg_file_name": str(tmp_path / "map.png")})
    for content in (path.read_bytes()[:700], b"<html>404</html>", b""):
        path.write_bytes(content)
        message = error_of(record)
        assert str(path) in message and "image id 1" in message and f"{len(content)} bytes" in message
    path.unlink()
    assert str(path) in error_of(record)


def test_another_size_than_annotated(record: dict) -> None:
    message = error_of({**record, "width": 60})
    assert record["file_name"] in message and "(64, 64)" in message and "(60, 64)" in message


def test_other_errors_pass_through(record: dict) -> None:
    record["annotations"][0]["segmentation"] = "not a polygon"
    with pytest.raises(ValueError, match="segmentation"):
        mapper()(record)

    class Broken(T.Augmentation):
        def get_transform(self, image: np.ndarray) -> T.Transform:
            raise OSError("an augmentation's own error")

    with pytest.raises(OSError, match="own error"):
        mapper(augmentations=[Broken()])(record)
    with pytest.raises(KeyError, match="file_name"):
        mapper()({"image_id": 3})
