"""Datasets of the user, and small datasets made from large ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lift_det.data import (
    DatasetError,
    check_coco,
    get_dataset_dicts,
    load_own_coco,
    parse_dataset,
    write_own_coco,
    write_synthetic_coco,
)

CLASSES = {"thing_classes": ["circle", "square", "triangle", "star"], "category_ids": [1, 2, 3, 4]}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The paths of a synthetic dataset; restores the catalogs."""
    before = set(DatasetCatalog.keys())
    folder = write_synthetic_coco(tmp_path, num_train=6, num_val=1, image_size=64)
    yield {"json_file": str(folder / "annotations/instances_train.json"), "image_root": str(folder / "train")}
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_parse_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("images", "c:d"):
        (tmp_path / name).mkdir()
    for name in ("a.json", "a:b.json"):
        (tmp_path / name).write_text("{}")
    assert parse_dataset("a.json:images/") == ("a.json", "images/")
    assert parse_dataset("a:b.json:c:d") == ("a:b.json", "c:d")
    assert parse_dataset("~/a.json:~/images") == (f"{tmp_path}/a.json", f"{tmp_path}/images")
    for wrong in ("a.json", "a.json:", ":images", ""):
        with pytest.raises(ValueError, match=wrong or "dataset"):
            parse_dataset(wrong)
    for wrong, part in (("b.json:images", "/b.json"), ("a.json:pictures", "/pictures")):
        with pytest.raises(DatasetError, match=part):
            parse_dataset(wrong)


def test_loads_and_registers_once(files: dict[str, str]) -> None:
    dicts = load_own_coco("mine", **files, **CLASSES)
    assert len(dicts) == 6 and dicts == get_dataset_dicts("mine", filter_empty=False)
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == CLASSES["thing_classes"] and metadata.json_file == files["json_file"]
    assert load_own_coco("mine", **files, **CLASSES) == dicts
    with pytest.raises(DatasetError, match="mine"):
        load_own_coco("mine", "other.json", files["image_root"], **CLASSES)
    content = json.loads(Path(files["json_file"]).read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 2]
    Path(files["json_file"]).write_text(json.dumps(content))
    assert len(load_own_coco("mine", **files, **CLASSES, filter_empty=True)) == 4


def test_other_categories_are_errors_and_leave_the_name_free(files: dict[str, str]) -> None:
    for wrong in (
        {"thing_classes": ["circle", "square", "triangle"], "category_ids": [1, 2, 3]},
        {"thing_classes": ["circle", "square", "star", "triangle"], "category_ids": [1, 2, 3, 4]},
        {"thing_classes": CLASSES["thing_classes"], "category_ids": [0, 1, 2, 3]},
    ):
        with pytest.raises(DatasetError, match="1: 'circle', 2: 'square', 3: 'triangle', 4: 'star'"):
            load_own_coco("mine", **files, **wrong)
        assert "mine" not in DatasetCatalog
    with pytest.raises(DatasetError, match=r"\[2, 1\]"):
        load_own_coco("mine", **files, thing_classes=["a", "b"], category_ids=[2, 1])
    with pytest.raises(DatasetError, match="nowhere.json"):
        load_own_coco("mine", "nowhere.json", files["image_root"], **CLASSES)
    assert len(load_own_coco("mine", **files, **CLASSES)) == 6


def test_write_own_coco(files: dict[str, str], tmp_path: Path) -> None:
    content = json.loads(Path(files["json_file"]).read_text())
    content["annotations"][0]["bbox"][2] = 0
    Path(files["json_file"]).write_text(json.dumps(content))
    check = check_coco(**files)
    path = write_own_coco(check, tmp_path / "new" / "folder")
    assert path == str(tmp_path / "new" / "folder" / "instances_train.json")
    dicts = load_own_coco("mine", path, files["image_root"], **CLASSES)
    assert sum(len(record["annotations"]) for record in dicts) == len(content["annotations"]) - 1
    with pytest.raises(ValueError, match="instances_train.json"):
        write_own_coco(check, Path(files["json_file"]).parent)
    assert json.loads(Path(files["json_file"]).read_text()) == content
