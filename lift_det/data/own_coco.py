"""Datasets of the user in COCO's format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from lift_det.files import write_text_atomically

from .coco_check import read_coco
from .coco_findings import CocoCheck
from .dataset_dicts import get_dataset_dicts
from .errors import DatasetError


def parse_dataset(text: str) -> tuple[str, str]:
    """Splits ``"annotations.json:images/"`` into the annotation file and the image folder.

    Both paths may contain colons themselves, and begin with ``~``.

    Raises:
        ValueError: these are not two paths with a colon between them.
        DatasetError: the file or the folder does not exist.
    """
    pairs = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == ":" and text[:i] and text[i + 1 :]]
    if not pairs:
        raise ValueError(f"Expected a dataset as ANNOTATIONS:IMAGES, such as my_train.json:images/, got '{text}'.")
    for pair in pairs:
        json_file, image_root = map(os.path.expanduser, pair)
        if os.path.isfile(json_file) and os.path.isdir(image_root):
            return json_file, image_root
    if os.path.isfile(json_file):
        raise DatasetError(f"The image folder '{os.path.abspath(image_root)}' does not exist.")
    raise DatasetError(f"The annotation file '{os.path.abspath(json_file)}' does not exist.")


def load_own_coco(
    names: str,
    json_file: str,
    image_root: str,
    thing_classes: Sequence[str],
    category_ids: Sequence[int],
    filter_empty: bool = False,
) -> list[dict[str, Any]]:
    """Loads a dataset in COCO's format, and registers it first if necessary.

    A LazyConfig with this as ``dataloader.{train,test}.dataset`` needs no other code for the dataset.

    Args:
        names: a single name to register the dataset under. detectron2's configs refer to the argument by this name.
        json_file: annotations in COCO's format.
        image_root: the folder that file names are relative to.
        thing_classes: class names in the order of the model's outputs.
        category_ids: category ids of the classes, ascending.
        filter_empty: leave out images without annotations other than crowds.

    Returns:
        Dicts in detectron2's dataset format.

    Raises:
        DatasetError: the dataset cannot be loaded, its categories differ, or the name belongs to another dataset.
    """
    classes = dict(zip(map(int, category_ids), thing_classes, strict=True))
    if list(classes) != sorted(classes) or len(classes) < len(category_ids):
        raise DatasetError(f"category_ids of '{names}' must be ascending, got {list(category_ids)}.")
    metadata = {
        "thing_classes": list(classes.values()),
        "thing_dataset_id_to_contiguous_id": {id_: number for number, id_ in enumerate(classes)},
    }
    if names not in DatasetCatalog:
        register_coco_instances(names, metadata, json_file, image_root)
    else:
        registered = MetadataCatalog.get(names)
        expected = {"json_file": json_file, "image_root": image_root, **metadata}
        if any(registered.get(key) != value for key, value in expected.items()):
            raise DatasetError(f"The name '{names}' is already registered for another dataset. Choose another name.")
    try:
        return get_dataset_dicts(names, filter_empty=filter_empty)
    except Exception as error:
        DatasetCatalog.remove(names)
        MetadataCatalog.remove(names)
        if isinstance(error, AssertionError):  # detectron2's, if the file has other categories
            found = {category["id"]: category["name"] for category in read_coco(json_file)["categories"]}
            if found != classes:
                text = f"'{json_file}' has the categories {found}, the config (category_ids, thing_classes) {classes}."
                raise DatasetError(text) from error
        raise


def write_own_coco(check: CocoCheck, folder: str | os.PathLike) -> str:
    """Writes ``check.cleaned`` to a file with the original name in a folder, which is created; returns its path.

    Raises:
        ValueError: the file would overwrite the original.
        OSError: the file cannot be written.
    """
    path = Path(folder) / f"{Path(check.json_file).stem}.json"
    if path.resolve() == Path(check.json_file).resolve():
        raise ValueError(f"Writing to '{folder}' would overwrite '{path}': choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(check.cleaned))
    return str(path)
