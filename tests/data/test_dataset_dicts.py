"""What can be wrong with a data set, and that the message says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

from lift_det.data import DatasetError, get_dataset_dicts, register_coco_subset, write_synthetic_coco
from lift_det.data.register import register_synthetic


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A drawn set that is registered as 'shapes_train'; the catalogs are as before afterwards."""
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
    """Sets keys of the annotation file, or takes them off where the value is None."""
    content = {**json.loads(annotations(folder).read_text()), **changes}
    annotations(folder).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def error_of(name: str | list[str], **arguments: object) -> str:
    with pytest.raises(DatasetError) as caught:
        get_dataset_dicts(name, **arguments)
    return str(caught.value)


def test_returns_what_detectron2_returns(folder: Path) -> None:
    assert get_dataset_dicts("shapes_train") == get_detection_dataset_dicts("shapes_train")
    twice = get_dataset_dicts(names=["shapes_train", "shapes_train"], filter_empty=False, check_consistency=False)
    assert len(twice) == 8


def test_unknown_name_suggests_the_closest() -> None:
    assert "'coco_2017_train'" in error_of("coco_2017_trian")
    assert "'lift_det_synthetic_train'" in error_of(["lift_det_syntetic_train"])
    assert "No registered name is like it" in error_of("zzzzzzzzzzzzzzz")
    assert "at least one registered name" in error_of([])


def test_missing_annotation_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations(folder).unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", "some/place")
    message = error_of("shapes_train")
    for part in (str(annotations(folder)), "is missing", "DETECTRON2_DATASETS is currently 'some/place'", "layout"):
        assert part in message
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert "DETECTRON2_DATASETS is not set" in error_of("shapes_train")
    register_coco_subset("shapes_subset", "shapes_train", [1])
    assert str(annotations(folder)) in error_of("shapes_subset")


def test_missing_files_of_known_sets_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {}
    for name in ("lift_det_synthetic_train", "lift_det_synthetic_val"):
        kept[name] = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    try:
        register_synthetic(str(tmp_path / "empty"))
        message = error_of("lift_det_synthetic_train")
        assert "make quickstart" in message and "write_synthetic_coco" in message
        assert str(tmp_path / "empty" / "synthetic" / "annotations" / "instances_train.json") in message
    finally:
        for name, (function, metadata) in kept.items():
            DatasetCatalog[name], MetadataCatalog[name] = function, metadata
    name = "coco_2014_train"  # not at hand anywhere these tests run
    if not Path(MetadataCatalog.get(name).json_file).exists():
        assert "coco/annotations/" in error_of(name)


def test_empty_and_broken_annotation_files(folder: Path) -> None:
    whole = annotations(folder).read_bytes()
    annotations(folder).write_bytes(b"")
    assert "is empty (0 bytes)" in error_of("shapes_train")
    annotations(folder).write_bytes(whole[: len(whole) // 2])
    message = error_of("shapes_train")
    assert "is not whole JSON" in message and f"({len(whole) // 2} bytes)" in message
    annotations(folder).write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    assert "is not whole JSON" in error_of("shapes_train")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_annotation_file_without_a_list(folder: Path, key: str) -> None:
    change(folder, **{key: None})
    message = error_of("shapes_train")
    assert "not in COCO's format" in message and f"{key} is missing" in message


def test_annotation_file_that_is_a_list(folder: Path) -> None:
    annotations(folder).write_text('[{"image_id": 1, "score": 0.5}]')
    message = error_of("shapes_train")
    assert "images, annotations, categories are missing, found a list" in message


def test_no_images_and_no_annotated_image(folder: Path) -> None:
    content = json.loads(annotations(folder).read_text())
    change(folder, images=[], annotations=[])
    assert "lists no images" in error_of("shapes_train")
    change(folder, images=content["images"], annotations=[])
    message = error_of("shapes_train")
    assert "None of the 4 images" in message and "filter_empty=False" in message
    assert len(get_dataset_dicts("shapes_train", filter_empty=False)) == 4
    change(folder, annotations=[{**a, "iscrowd": 1} for a in content["annotations"]])
    assert "not a crowd" in error_of("shapes_train")


def test_subset_without_an_annotation(folder: Path) -> None:
    content = json.loads(annotations(folder).read_text())
    change(folder, annotations=[a for a in content["annotations"] if a["image_id"] != 2])
    register_coco_subset("shapes_subset", "shapes_train", [2])
    assert "None of the 1 images of 'shapes_subset'" in error_of("shapes_subset")


def test_missing_image_folder(folder: Path) -> None:
    (folder / "train").rename(folder / "elsewhere")
    message = error_of("shapes_train")
    assert "image folder of 'shapes_train' is missing" in message and str(folder / "train") in message


def test_an_error_the_file_does_not_explain_passes_through(folder: Path) -> None:
    content = json.loads(annotations(folder).read_text())
    content["annotations"][0]["bbox"] = []
    change(folder, annotations=content["annotations"])
    with pytest.raises(ValueError, match="empty 'bbox'"):
        get_dataset_dicts("shapes_train")
