"""The data sets that importing ``lift_det.data`` registers, and subsets of registered ones.

Paths are built as detectron2 builds its own: below ``$DETECTRON2_DATASETS``, else ``./datasets``, read at import.
Nothing is opened before a data set is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .errors import DatasetError
from .synthetic_coco import CATEGORIES, SPLITS

# Images with 2 to 7 objects, none a crowd and each at least a hundredth of the image: they can be learned by heart.
COCO_TRAIN_OVERFIT8 = (157206, 213148, 281789, 286720, 294914, 420862, 524291, 565004)
COCO_VAL_FIRST2 = (139, 802)


def register_coco_subset(name: str, source: str, image_ids: Iterable[int]) -> None:
    """Registers some images of a registered data set under a name of their own.

    The source is loaded when the subset is. Its metadata is copied without ``json_file``, so detectron2's
    ``COCOEvaluator(name, output_dir=...)`` writes the subset's own annotations to ``output_dir`` and evaluates on them.
    That file is a cache: give another ``output_dir`` (or ``allow_cached_coco=False``) after changing a subset's ids.
    Registering the same subset again does nothing.

    Args:
        name: of the subset.
        source: a registered data set whose dicts have ``image_id``, such as ``coco_2017_train``.
        image_ids: the images, in the order in which they shall come.

    Raises:
        DatasetError: the source is not registered, an id comes twice or there is none, or the name is taken by
            something else. When the subset is loaded: the source lacks some of the ids.
    """
    ids = tuple(int(image_id) for image_id in image_ids)
    if not ids or len(set(ids)) != len(ids):
        raise DatasetError(f"The subset '{name}' needs at least one image id and each only once, got {list(ids)}.")
    if source not in DatasetCatalog:
        raise DatasetError(
            f"The subset '{name}' is to be made of '{source}', which is not registered. Register that one first."
        )
    metadata = {"subset_of": source, "subset_image_ids": ids}
    if name in DatasetCatalog:
        there = MetadataCatalog.get(name)
        if all(there.get(key) == value for key, value in metadata.items()):
            return
        raise DatasetError(
            f"'{name}' is already registered, as something else than {len(ids)} images of '{source}'. Choose another "
            "name, or take it off with DatasetCatalog.remove(name) and MetadataCatalog.remove(name)."
        )
    DatasetCatalog.register(name, lambda: _load_subset(name, source, ids))
    _copy_metadata(source, name, **metadata)


def _load_subset(name: str, source: str, image_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    by_id = {record["image_id"]: record for record in DatasetCatalog.get(source)}
    missing = [image_id for image_id in image_ids if image_id not in by_id]
    if missing:
        raise DatasetError(
            f"'{name}' is {len(image_ids)} images of '{source}', which has {len(by_id)} images but not those with the "
            f"ids {missing}. Point DETECTRON2_DATASETS at the whole of '{source}', or register a subset of what is "
            "there with lift_det.data.register_coco_subset."
        )
    # Class names and ids of a custom data set are known only once its file has been read.
    _copy_metadata(source, name)
    return [by_id[image_id] for image_id in image_ids]


def _copy_metadata(source: str, name: str, **extra: Any) -> None:
    left_out = ("name", "json_file", *extra)
    copied = {key: value for key, value in MetadataCatalog.get(source).as_dict().items() if key not in left_out}
    own = MetadataCatalog.get(name)
    # A subset of a subset keeps its own origin.
    for key, value in {**copied, **extra}.items():
        if key not in ("subset_of", "subset_image_ids") or key in extra:
            setattr(own, key, value)


def register_synthetic(root: str) -> None:
    """Registers ``lift_det_synthetic_train`` and ``_val`` below ``root``, unless they are registered already."""
    metadata = {
        "thing_classes": [category["name"] for category in CATEGORIES],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(CATEGORIES)},
    }
    for split in SPLITS:
        name = f"lift_det_synthetic_{split}"
        if name not in DatasetCatalog:
            folder = os.path.join(root, "synthetic")
            json_file = os.path.join(folder, "annotations", f"instances_{split}.json")
            register_coco_instances(name, metadata, json_file, os.path.join(folder, split))


def register_all() -> None:
    """Registers every data set of this package; a second call changes nothing."""
    register_synthetic(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
    register_coco_subset("coco_2017_train_overfit8", "coco_2017_train", COCO_TRAIN_OVERFIT8)
    register_coco_subset("coco_2017_val_first2", "coco_2017_val", COCO_VAL_FIRST2)
