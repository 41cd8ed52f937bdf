"""Registers the package's datasets below ``$DETECTRON2_DATASETS`` or ``./datasets``, and subsets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .errors import DatasetError
from .synthetic_coco import CATEGORIES, SPLITS

# Images with 2 to 7 objects, no crowds, each object at least a hundredth of the image.
COCO_TRAIN_OVERFIT8 = (157206, 213148, 281789, 286720, 294914, 420862, 524291, 565004)
COCO_VAL_FIRST2 = (139, 802)


def register_coco_subset(name: str, source: str, image_ids: Iterable[int]) -> None:
    """Registers some images of a registered dataset under another name.

    detectron2's ``COCOEvaluator`` caches the subset's annotations in its ``output_dir``. Use another ``output_dir``
    after changing ``image_ids``.

    Args:
        name: name of the subset.
        source: a registered dataset whose dicts have ``image_id``, such as ``coco_2017_train``.
        image_ids: ids of the images, in the order of the subset.

    Raises:
        DatasetError: the source is not registered, there are no ids or repeated ones, or the name belongs to another
            dataset. Loading the subset raises it if the source lacks an id.
    """
    ids = tuple(int(image_id) for image_id in image_ids)
    if not ids or len(set(ids)) != len(ids):
        raise DatasetError(f"The subset '{name}' needs at least one image id, and each id once, got {list(ids)}.")
    if source not in DatasetCatalog:
        raise DatasetError(f"'{source}', the source of '{name}', is not registered: register it first.")
    origin = {"subset_of": source, "subset_image_ids": ids}
    if name in DatasetCatalog:
        registered = MetadataCatalog.get(name)
        if any(registered.get(key) != value for key, value in origin.items()):
            raise DatasetError(f"The name '{name}' is already registered for another dataset: choose another name.")
        return
    DatasetCatalog.register(name, lambda: _load_subset(name, source, ids))
    MetadataCatalog.get(name).set(**origin)
    _copy_metadata(source, name)


def _load_subset(name: str, source: str, image_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    records = {record["image_id"]: record for record in DatasetCatalog.get(source)}
    missing = [image_id for image_id in image_ids if image_id not in records]
    if missing:
        raise DatasetError(
            f"'{source}' has {len(records)} images, but not those of '{name}' with the ids {missing}. Set "
            f"DETECTRON2_DATASETS to a complete '{source}', or register another subset."
        )
    _copy_metadata(source, name)  # again, because the classes may only be known after loading the source
    return [records[image_id] for image_id in image_ids]


def _copy_metadata(source: str, name: str) -> None:
    target = MetadataCatalog.get(name)
    for key, value in MetadataCatalog.get(source).as_dict().items():
        if key not in ("name", "json_file", "subset_of", "subset_image_ids"):
            setattr(target, key, value)


def register_all() -> None:
    """Registers the datasets of this package, unless they are registered."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    metadata = {
        "thing_classes": [category["name"] for category in CATEGORIES],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(CATEGORIES)},
    }
    folder = os.path.join(root, "synthetic")
    for split in SPLITS:
        name = f"lift_det_synthetic_{split}"
        if name not in DatasetCatalog:
            json_file = os.path.join(folder, "annotations", f"instances_{split}.json")
            register_coco_instances(name, metadata, json_file, os.path.join(folder, split))
    register_coco_subset("coco_2017_train_overfit8", "coco_2017_train", COCO_TRAIN_OVERFIT8)
    register_coco_subset("coco_2017_val_first2", "coco_2017_val", COCO_VAL_FIRST2)
