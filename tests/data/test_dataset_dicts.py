"""Registered datasets are loaded, and errors name the cause."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

from lift_det.data import DatasetError, get_dataset_dicts, register_coco_subset, write_synthetic_coco


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A synthetic dataset, registered as 'shapes_train'; restores the catalogs."""
    before = set(DatasetCatalog.keys())
    folder = write_synthetic_coco(tmp_path, num_train=4, num_val=1, image_size=64)
    register_coco_instances("shapes_train", {}, str(annotations(folder)), str(folder / "train"))
    yield folder
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def annotations(folder: Path) -> Path:
    return folder / "annotations" / "instances_train.json"


def change(folder: Path, **changes: object) -> None:
    content = {**json.loads(annotations(folder).read_text()), **changes}
    annotations(folder).write_text(json.dumps(content))


def error_of(name: str | list[str]) -> str:
    with pytest.raises(DatasetError) as caught:
        get_dataset_dicts(name)
    return str(caught.value)


def test_returns_what_detectron2_returns(folder: Path) -> None:
    assert get_dataset_dicts("shapes_train") == get_detection_dataset_dicts("shapes_train")
    twice = get_dataset_dicts(names=["shapes_train", "shapes_train"], filter_empty=False, check_consistency=False)
    assert len(twice) == 8


def test_unknown_names() -> None:
    assert "coco_2017_train" in error_of("coco_2017_trian")
    assert "lift_det_synthetic_train" in error_of(["lift_det_syntetic_train"])
    assert "zzzzzzzzzzzzzzz" in error_of("zzzzzzzzzzzzzzz")
    error_of([])


def test_missing_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "some/place")
    register_coco_subset("shapes_subset", "shapes_train", [1])
    (folder / "train").rename(folder / "elsewhere")
    assert str(folder / "train") in error_of("shapes_train")
    annotations(folder).unlink()
    for name in ("shapes_train", "shapes_subset"):
        message = error_of(name)
        assert str(annotations(folder)) in message and "some/place" in message
    if not Path(MetadataCatalog.get("coco_2014_train").json_file).exists():
        assert "coco/annotations/" in error_of("coco_2014_train")


def test_invalid_annotation_files(folder: Path) -> None:
    for content in (b"", b'{"images": [', b"[1]"):
        annotations(folder).write_bytes(content)
        assert str(annotations(folder)) in error_of("shapes_train")


def test_no_annotated_image(folder: Path) -> None:
    original = json.loads(annotations(folder).read_text())["annotations"]
    change(folder, annotations=[])
    assert "4 images" in error_of("shapes_train") and len(get_dataset_dicts("shapes_train", filter_empty=False)) == 4
    change(folder, annotations=[{**annotation, "iscrowd": 1} for annotation in original])
    assert "4 images" in error_of("shapes_train")
    change(folder, annotations=[annotation for annotation in original if annotation["image_id"] != 2])
    register_coco_subset("shapes_subset", "shapes_train", [2])
    assert "1 images of 'shapes_subset'" in error_of("shapes_subset")


def test_other_errors_pass_through(folder: Path) -> None:
    original = json.loads(annotations(folder).read_text())["annotations"]
    original[0]["bbox"] = []
    change(folder, annotations=original)
    with pytest.raises(ValueError, match="bbox"):
        get_dataset_dicts("shapes_train")
