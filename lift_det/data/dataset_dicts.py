"""detectron2's ``get_detection_dataset_dicts``, which says what is wrong with a data set and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from .coco_json import check_file, read_coco
from .errors import DatasetError, datasets_root_note


def get_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> list[dict[str, Any]]:
    """Loads registered data sets; a drop-in for ``detectron2.data.get_detection_dataset_dicts``.

    Args:
        names: one registered name or several.
        filter_empty: leave out images that have no annotation but crowds.
        min_keypoints, proposal_files, check_consistency: passed on to detectron2.

    Returns:
        Dicts in detectron2's dataset format.

    Raises:
        DatasetError: a name is not registered, its annotation file or image folder is missing, the file is empty or
            broken or not in COCO's format, or no image is left.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DatasetError("No data set is named: expected at least one registered name, got an empty list.")
    for name in names:
        _check_registered(name)
        _check_files(name)
    try:
        dicts = get_detection_dataset_dicts(names, filter_empty, min_keypoints, proposal_files, check_consistency)
    except DatasetError:
        raise
    except Exception as error:
        # An annotation file of COCO's takes seconds to parse, so it is looked into only once loading has failed. What
        # the file does not explain is raised as it came.
        for name in names:
            _check_annotations(name, filter_empty, error)
        raise
    return dicts


def _check_registered(name: str) -> None:
    if name in DatasetCatalog:
        return
    close = difflib.get_close_matches(name, list(DatasetCatalog.keys()), n=4, cutoff=0.5)
    meant = f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else "No registered name is like it."
    raise DatasetError(
        f"There is no data set '{name}' among the {len(DatasetCatalog)} that are registered. {meant} Names of this "
        "package are registered by `import lift_det.data`; your own by "
        "detectron2.data.datasets.register_coco_instances(name, {}, json_file, image_root)."
    )


def _origin(name: str) -> str:
    """Returns the data set that owns the files: ``name`` itself, or what it is a subset of."""
    source = MetadataCatalog.get(name).get("subset_of")
    return name if source is None else _origin(source)


def _files(name: str) -> tuple[str | None, str | None]:
    """Returns the local annotation file and image folder of a COCO data set, None where there is none to check."""
    metadata = MetadataCatalog.get(_origin(name))
    paths = (metadata.get("json_file"), metadata.get("image_root"))
    if metadata.get("evaluator_type") != "coco":
        return None, None
    # Addresses such as "detectron2://..." are fetched by detectron2.
    return tuple(None if path is None or "://" in str(path) else str(path) for path in paths)


def _check_files(name: str) -> None:
    json_file, image_root = _files(name)
    if json_file is not None:
        check_file(json_file, _annotation_file(name, json_file), _advice(name))
    if image_root is not None and not os.path.isdir(image_root):
        raise DatasetError(
            f"The image folder of '{name}' is missing: there is no folder '{os.path.abspath(image_root)}'. "
            f"{_advice(name)}"
        )


def _check_annotations(name: str, filter_empty: bool, error: Exception) -> None:
    """Raises a DatasetError if the annotation file of ``name`` explains why loading failed with ``error``."""
    json_file, _ = _files(name)
    if json_file is None:
        return
    content = read_coco(json_file, _annotation_file(name, json_file), _advice(name))
    if not filter_empty:
        return
    # The images that would be left are those of the data set, which may be a subset.
    ids = MetadataCatalog.get(name).get("subset_image_ids") or [image["id"] for image in content["images"]]
    annotated = {a.get("image_id") for a in content["annotations"] if not a.get("iscrowd", 0)}
    if annotated.isdisjoint(ids):
        raise DatasetError(
            f"None of the {len(ids)} images of '{name}' has an annotation that is not a crowd "
            f"({len(content['annotations'])} annotations in '{json_file}'), and images without one are left out "
            "(filter_empty=True). Check that 'image_id' in the annotations is the 'id' of an image, or load with "
            "filter_empty=False."
        ) from error


def _annotation_file(name: str, json_file: str) -> str:
    return f"The annotation file of '{name}', '{json_file}',"


def _advice(name: str) -> str:
    origin = _origin(name)
    json_file, image_root = _files(name)
    layout = f"Expected layout: annotations in '{json_file}', images in '{image_root}'."
    if origin.startswith("lift_det_synthetic_"):
        todo = (
            "This set is drawn, not downloaded: `make quickstart` draws it, or "
            "lift_det.data.write_synthetic_coco('datasets')."
        )
    elif origin.startswith("coco_"):
        todo = (
            "Point DETECTRON2_DATASETS at the folder that holds coco/, with COCO's own layout in it: "
            "coco/annotations/instances_{train,val}2017.json, coco/train2017/ and coco/val2017/."
        )
    else:
        todo = "Put the files there, or register the data set with the paths that they have."
    return f"{datasets_root_note()} {layout} {todo}"
