"""The mapper: upstream's output, and errors that name the file."""

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


def mapper(cls: type = DatasetMapper, **changes: object):
    augmentations = [T.ResizeShortestEdge(96, 200)]
    arguments = {"augmentations": augmentations, "image_format": "BGR", "use_instance_mask": True, **changes}
    return cls(True, **arguments)


def error_of(record: dict, **changes: object) -> str:
    with pytest.raises(DatasetError) as caught:
        mapper(**changes)(record)
    return str(caught.value)


def test_gives_what_upstream_gives(record: dict) -> None:
    before = copy.deepcopy(record)
    ours, theirs = mapper()(record), mapper(UpstreamMapper)(record)
    assert record == before
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"]) and ours["image"].shape == (3, 96, 96)
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    assert len(ours["instances"]) == len(record["annotations"])


def test_is_built_from_a_yacs_config(record: dict) -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 80
    built = DatasetMapper(cfg, is_train=False)
    assert isinstance(built, DatasetMapper) and not built.is_train
    assert built(record)["image"].shape == (3, 80, 80)


def test_truncated_jpeg_is_named(record: dict) -> None:
    path = Path(record["file_name"])
    path.write_bytes(path.read_bytes()[:700])
    message = error_of(record)
    for part in (str(path), "image id 1", "truncated", "700 bytes", "Fetch"):
        assert part in message


def test_missing_empty_and_foreign_files_are_named(record: dict) -> None:
    path = Path(record["file_name"])
    path.write_text("<html>404</html>")
    assert "cannot identify image file" in error_of(record)
    path.write_bytes(b"")
    assert "0 bytes" in error_of(record)
    path.unlink()
    assert "there is no such file" in error_of(record)


def test_another_size_than_annotated(record: dict) -> None:
    message = error_of({**record, "width": 60})
    assert "another size than its annotations say" in message and "(64, 64)" in message and "(60, 64)" in message


def test_broken_segmentation_map_is_named(record: dict, tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    message = error_of({**record, "sem_seg_file_name": str(tmp_path / "map.png")})
    assert "Segmentation map" in message and "map.png" in message


def test_other_errors_are_not_put_down_to_the_image(record: dict) -> None:
    record["annotations"][0]["segmentation"] = "not a polygon"
    with pytest.raises(ValueError, match="Cannot transform segmentation"):
        mapper()(record)

    class Broken(T.Augmentation):
        def get_transform(self, image: np.ndarray) -> T.Transform:
            raise OSError("an augmentation's own error")

    with pytest.raises(OSError, match="own error"):
        mapper(augmentations=[Broken()])(record)
    with pytest.raises(KeyError, match="file_name"):
        mapper()({"image_id": 3})
