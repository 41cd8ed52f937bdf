"""One's own data sets in COCO's format: named on a command line, registered and loaded from a config alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from lift_det.files import write_text_atomically

from .coco_findings import CocoCheck
from .coco_json import read_coco
from .dataset_dicts import get_dataset_dicts
from .errors import DatasetError


def parse_dataset(text: str) -> tuple[str, str]:
    """Reads a data set's place, ``"my_train.json:images/"``.

    Args:
        text: annotation file and image folder with a colon between them. Either may hold further colons, and begin with
            ``~``.

    Returns:
        The path of the annotation file and that of the folder that its file names start from.

    Raises:
        ValueError: it is not two paths with a colon between them.
        DatasetError: the file or the folder is not there.
    """
    pairs = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == ":" and text[:i] and text[i + 1 :]]
    if not pairs:
        raise ValueError(
            f"'{text}' names no data set: expected annotations and image folder with a colon between them, such as "
            "my_train.json:images/"
        )
    pairs = [(os.path.expanduser(json_file), os.path.expanduser(image_root)) for json_file, image_root in pairs]
    for json_file, image_root in pairs:
        if os.path.isfile(json_file) and os.path.isdir(image_root):
            return json_file, image_root
    json_file, image_root = next((pair for pair in pairs if os.path.isfile(pair[0])), pairs[-1])
    if not os.path.isfile(json_file):
        raise DatasetError(f"'{text}': there is no annotation file '{os.path.abspath(json_file)}'.")
    raise DatasetError(f"'{text}': there is no image folder '{os.path.abspath(image_root)}'.")


def load_own_coco(
    names: str,
    json_file: str,
    image_root: str,
    thing_classes: Sequence[str],
    category_ids: Sequence[int],
    filter_empty: bool = False,
) -> list[dict[str, Any]]:
    """Registers a data set in COCO's format, unless it is registered, and loads it.

    As ``dataloader.train.dataset`` or ``dataloader.test.dataset`` of a LazyConfig it makes the config whole: nothing
    has to be registered by code before. ``names`` is called as in detectron2's own configs, so that
    ``COCOEvaluator(dataset_name="${..test.dataset.names}")`` finds what the test data set has registered.

    Args:
        names: one name to register the data set under.
        json_file: the annotations.
        image_root: the folder that their file names start from.
        thing_classes: names of the classes, in the order of their numbers in the model.
        category_ids: their ids in the file, ascending, as detectron2 numbers classes.
        filter_empty: leave out images that have no annotation but crowds.

    Returns:
        Dicts in detectron2's dataset format.

    Raises:
        DatasetError: the file or the folder is missing or cannot be used, the file's categories are not these, or the
            name is taken by another data set.
    """
    classes = dict(zip((int(id_) for id_ in category_ids), thing_classes, strict=True))
    if list(classes) != sorted(classes) or len(classes) < len(category_ids):
        raise DatasetError(
            f"category_ids of '{names}' have to ascend, as classes are numbered in that order: {list(category_ids)}."
        )
    metadata = {
        "thing_classes": list(classes.values()),
        "thing_dataset_id_to_contiguous_id": {id_: number for number, id_ in enumerate(classes)},
    }
    wanted = {"json_file": json_file, "image_root": image_root, **metadata}
    registered = MetadataCatalog.get(names) if names in DatasetCatalog else None
    if registered is not None and any(registered.get(key) != value for key, value in wanted.items()):
        raise DatasetError(
            f"'{names}' is already registered, as another data set than '{json_file}' with images in '{image_root}' "
            f"and {len(classes)} classes. Choose another name."
        )
    if registered is None:
        register_coco_instances(names, metadata, json_file, image_root)
    try:
        return get_dataset_dicts(names, filter_empty=filter_empty)
    except Exception as error:
        # The name would stay taken by what cannot be loaded.
        DatasetCatalog.remove(names)
        MetadataCatalog.remove(names)
        if isinstance(error, AssertionError):  # detectron2's, of metadata that the file contradicts
            _check_categories(json_file, classes)
        raise


def write_own_coco(check: CocoCheck, folder: str | os.PathLike) -> str:
    """Writes what a check left of an annotation file, under the file's name.

    Args:
        check: of the data set.
        folder: to write to; made if it is not there.

    Returns:
        The path of the file.

    Raises:
        ValueError: it would overwrite the file that was checked.
        OSError: it cannot be written.
    """
    path = Path(folder) / f"{Path(check.json_file).stem}.json"
    if path.resolve() == Path(check.json_file).resolve():
        raise ValueError(f"'{path}' is the file that was checked: write to another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(check.cleaned))
    return str(path)


def _check_categories(json_file: str, classes: dict[int, str]) -> None:
    content = read_coco(json_file, f"The annotation file '{json_file}'", "")
    found = dict(sorted((category["id"], category["name"]) for category in content["categories"]))
    if found != classes:
        raise DatasetError(
            f"The categories of '{json_file}' are {found}, the config's {classes} (thing_classes by category_ids). "
            "Give both the same ids and names."
        )
