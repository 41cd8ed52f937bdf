"""Loads registered datasets."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from .coco_check import read_coco
from .errors import DatasetError, datasets_root_note


def get_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> list[dict[str, Any]]:
    """``detectron2.data.get_detection_dataset_dicts`` with errors that name the cause.

    Raises:
        DatasetError: a name is not registered, its annotation file or image folder is missing or invalid, or no image
            has annotations.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DatasetError("Expected at least one registered dataset, got an empty list.")
    for name in names:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, list(DatasetCatalog.keys()), n=4, cutoff=0.5)
            raise DatasetError(
                f"'{name}' is not a registered dataset; similar names: {', '.join(close) or 'none'}. Register it with "
                "detectron2.data.datasets.register_coco_instances(name, {}, json_file, image_root)."
            )
        for path, exists in zip(_find_files(name), (os.path.isfile, os.path.isdir), strict=True):
            if path is not None and not exists(path):
                raise DatasetError(f"'{os.path.abspath(path)}' is missing. {_advice(name)}")
    try:
        return get_detection_dataset_dicts(names, filter_empty, min_keypoints, proposal_files, check_consistency)
    except DatasetError:
        raise
    except Exception as error:
        # Large annotation files take seconds to parse, so they are only checked after an error.
        for name in names:
            _explain(name, filter_empty, error)
        raise


def _find_files(name: str) -> tuple[str | None, str | None]:
    """Returns the annotation file and image folder of a COCO dataset or subset; None if they are not local."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("subset_of") is not None:
        return _find_files(metadata.subset_of)
    paths = (metadata.get("json_file"), metadata.get("image_root"))
    is_coco = metadata.get("evaluator_type") == "coco"
    return tuple(str(path) if is_coco and path is not None and "://" not in str(path) else None for path in paths)


def _explain(name: str, filter_empty: bool, error: Exception) -> None:
    """Raises a DatasetError if the annotation file is the reason for an error."""
    json_file, _ = _find_files(name)
    if json_file is None:
        return
    content = read_coco(json_file)
    if not filter_empty or not isinstance(error, AssertionError):  # detectron2's if no image is left
        return
    ids = MetadataCatalog.get(name).get("subset_image_ids") or [image["id"] for image in content["images"]]
    annotated = {a.get("image_id") for a in content["annotations"] if not a.get("iscrowd", 0)}
    if annotated.isdisjoint(ids):
        raise DatasetError(
            f"None of the {len(ids)} images of '{name}' has an annotation other than crowds in '{json_file}'. Check "
            "that each 'image_id' is the 'id' of an image, or pass filter_empty=False."
        ) from error


def _advice(name: str) -> str:
    json_file, image_root = _find_files(name)
    if name.startswith("lift_det_synthetic_"):
        advice = "Create it with `make quickstart` or lift_det.data.write_synthetic_coco('datasets')."
    elif name.startswith("coco_"):
        advice = "DETECTRON2_DATASETS must be the folder with coco/annotations/, coco/train2017/ and coco/val2017/."
    else:
        advice = "Put the files there, or register the dataset with other paths."
    return f"'{name}' has annotations in '{json_file}' and images in '{image_root}'. {advice} {datasets_root_note()}"
