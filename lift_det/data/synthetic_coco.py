"""A small detection data set that is drawn, in COCO's own layout, for tests and for a first training run.

Textured circles, squares, triangles and stars on cluttered backgrounds, overlapping each other. Colours are drawn
independently of the class; textures hint at it in three of four objects; only the shape is sure. Below ``root``::

    synthetic/
      annotations/instances_train.json  instances_val.json
      train/000000000001.jpg ...
      val/000000000001.jpg ...

``register.py`` gives the two splits their names, ``lift_det_synthetic_train`` and ``lift_det_synthetic_val``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lift_det.files import write_text_atomically

from .polygons import mask_to_polygons
from .shapes import CLASS_NAMES, background, coverage, outline, texture

SPLITS = ("train", "val")
CATEGORIES = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES, start=1)]

# Goes up whenever the same parameters draw other images, so that a set from an older version is drawn again.
_DRAWING_VERSION = 1
# Full colour resolution (4:4:4): halved, as JPEG has it by default, colours would run over the objects' outlines.
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
# Diameters as fractions of the image's side; between them the logarithm is uniform, so small objects are as common.
_DIAMETERS = (0.14, 0.65)
# An object hidden (or cut by the image's edge) more than this is not placed.
_MIN_VISIBLE_FRACTION = 0.4
# No visible part of an object may be smaller, in pixels: specks are noise to a detector and to an evaluation.
_MIN_PART_AREA = 12
_PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class SyntheticObject:
    """One drawn object.

    Attributes:
        category_id: 1 to 4, see ``CATEGORIES``.
        mask: bool (H, W), its visible pixels.
        polygons: COCO segmentation of ``mask``, in pixels.
    """

    category_id: int
    mask: np.ndarray
    polygons: list[list[float]]


def write_synthetic_coco(
    root: str | os.PathLike,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
    min_objects: int = 2,
    max_objects: int = 5,
) -> Path:
    """Draws both splits below ``root``, unless the same ones are there already.

    An annotation file is written last and in one step, and it holds the parameters: a set that was cut off, or one of
    other parameters, is drawn again. Image i depends on the seed, the split and i alone, not on how many there are.
    One process draws; let others wait for it.

    Args:
        root: the folder that ``DETECTRON2_DATASETS`` names.
        num_train, num_val: images in each split, at least 1.
        image_size: side of the square images in pixels, at least 64.
        seed: of everything that is drawn.
        min_objects, max_objects: objects in an image, drawn uniformly. Where the last ones find no free place there
            are fewer, but never none.

    Returns:
        The folder ``<root>/synthetic``.

    Raises:
        ValueError: a parameter is out of range.
        OSError: the folder cannot be written, or the disk is full.
    """
    if min(num_train, num_val) < 1:
        raise ValueError(f"num_train and num_val must be at least 1, got {num_train} and {num_val}.")
    folder = Path(root) / "synthetic"
    for split, count in zip(SPLITS, (num_train, num_val), strict=True):
        parameters = {
            "drawing_version": _DRAWING_VERSION,
            "split": split,
            "num_images": int(count),
            "image_size": int(image_size),
            "seed": int(seed),
            "min_objects": int(min_objects),
            "max_objects": int(max_objects),
        }
        if not _is_finished(folder, parameters):
            _write_split(folder, parameters)
    return folder


def draw_synthetic_image(
    split: str, index: int, image_size: int = 128, seed: int = 0, min_objects: int = 2, max_objects: int = 5
) -> tuple[np.ndarray, list[SyntheticObject]]:
    """Draws one image of a split.

    Args:
        split: 'train' or 'val'.
        index: from 0; the image's id in the annotation file is ``index + 1``.
        image_size, seed, min_objects, max_objects: see :func:`write_synthetic_coco`.

    Returns:
        ``(image, objects)``: uint8 (image_size, image_size, 3) in RGB, and its objects from back to front.

    Raises:
        ValueError: a parameter is out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    if image_size < 64:
        raise ValueError(f"image_size must be at least 64 (the smallest objects vanish below it), got {image_size}.")
    if not 1 <= min_objects <= max_objects:
        raise ValueError(f"Expected 1 <= min_objects <= max_objects, got {min_objects} and {max_objects}.")
    if min(seed, index) < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}.")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image = background(rng, image_size)
    wanted = int(rng.integers(min_objects, max_objects + 1))
    objects: list[SyntheticObject] = []
    full_areas: list[int] = []
    tries = 0
    # The first object has nothing to share the image with, so this ends: it only has to avoid the image's edge.
    while len(objects) < wanted and (tries < _PLACEMENT_TRIES * wanted or not objects):
        tries += 1
        class_index = int(rng.integers(len(CLASS_NAMES)))
        points = _place(rng, CLASS_NAMES[class_index], image_size)
        alpha, (left, top) = coverage(points)
        full_area = int((alpha >= 0.5).sum())
        # Cut to the image: `inside` in the image's frame, `alpha` from here on its part of it.
        bottom, right = top + alpha.shape[0], left + alpha.shape[1]
        inside = np.s_[max(top, 0) : min(bottom, image_size), max(left, 0) : min(right, image_size)]
        alpha = alpha[max(-top, 0) : image_size - top, max(-left, 0) : image_size - left]
        mask = np.zeros((image_size, image_size), bool)
        mask[inside] = alpha >= 0.5
        placed = _cover(objects, SyntheticObject(class_index + 1, mask, []), [*full_areas, full_area])
        if placed is None:
            continue
        objects = placed
        full_areas.append(full_area)
        colours = _contrasting_colours(rng, image[mask].mean(axis=0))
        fill = texture(rng, CLASS_NAMES[class_index], *alpha.shape, colours)
        image[inside] += alpha[..., None] * (fill - image[inside])
    image += rng.normal(0, rng.uniform(0, 6), image.shape).astype(np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), objects


def _place(rng: np.random.Generator, class_name: str, image_size: int) -> np.ndarray:
    """Draws an object's outline, (K, 2) in pixels; up to a fifth of its diameter may leave the image."""
    diameter = float(np.exp(rng.uniform(*np.log(_DIAMETERS)))) * image_size
    points = outline(class_name, diameter, angle=rng.uniform(0, 2 * np.pi), stretch=rng.uniform(0.85, 1.0))
    return points + rng.uniform(0.3 * diameter, image_size - 0.3 * diameter, 2)


def _cover(
    behind: list[SyntheticObject], front: SyntheticObject, full_areas: list[int]
) -> list[SyntheticObject] | None:
    """Puts one more object before those that are there; None if that would hide too much, leave specks or a hole.

    Args:
        behind: the objects so far.
        front: the new one; its polygons are not set yet.
        full_areas: of all of them, the new one last: pixels each would have if nothing hid it.
    """
    result = []
    for item, full_area in zip([*behind, front], full_areas, strict=True):
        hidden = item is not front and bool((item.mask & front.mask).any())
        if item.polygons and not hidden:
            result.append(item)
            continue
        mask = item.mask & ~front.mask if hidden else item.mask
        if mask.sum() < max(_MIN_VISIBLE_FRACTION * full_area, _MIN_PART_AREA):
            return None
        polygons = mask_to_polygons(mask)
        if polygons is None or (len(polygons) > 1 and _smallest_part(mask) < _MIN_PART_AREA):
            return None
        result.append(SyntheticObject(item.category_id, mask, polygons))
    return result


def _smallest_part(mask: np.ndarray) -> int:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return int(stats[1:, cv2.CC_STAT_AREA].min())


def _contrasting_colours(rng: np.random.Generator, surroundings: np.ndarray) -> np.ndarray:
    """(2, 3) colours: of eight random pairs, the one that is best told from the (3,) ground and from each other."""
    pairs = rng.uniform(0, 255, (8, 2, 3)).astype(np.float32)
    to_ground = np.linalg.norm(pairs - surroundings, axis=2).min(axis=1)
    to_each_other = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    return pairs[np.argmax(np.minimum(to_ground, to_each_other))]


def _write_split(folder: Path, parameters: dict[str, Any]) -> None:
    split, count = parameters["split"], parameters["num_images"]
    size = parameters["image_size"]
    json_file = _json_file(folder, split)
    image_folder = folder / split
    image_folder.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    # Without this, a cut-off redrawing would leave the old annotations beside new images.
    json_file.unlink(missing_ok=True)
    kept = {_file_name(index) for index in range(count)}
    for stale in image_folder.iterdir():
        if re.fullmatch(r"\d{12}\.jpg", stale.name) and stale.name not in kept:
            stale.unlink()

    images, annotations = [], []
    keys = ("image_size", "seed", "min_objects", "max_objects")
    for index in range(count):
        image, objects = draw_synthetic_image(split, index, **{key: parameters[key] for key in keys})
        # cv2.imwrite answers a full disk with False at best; writing the bytes raises.
        encoded = cv2.imencode(".jpg", image[..., ::-1], _JPEG)[1]
        (image_folder / _file_name(index)).write_bytes(encoded.tobytes())
        images.append({"id": index + 1, "file_name": _file_name(index), "width": size, "height": size, "license": 1})
        for item in objects:
            annotations.append(_annotation(item, image_id=index + 1, annotation_id=len(annotations) + 1))
    content = {
        "info": {"description": "lift_det synthetic shapes", "version": "1.0", "parameters": parameters},
        "licenses": [{"id": 1, "name": "drawn by lift_det: no rights reserved", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    write_text_atomically(json_file, json.dumps(content))
    logging.getLogger(f"detectron2.{__name__}").info(
        "Drew %d images with %d objects into '%s'.", count, len(annotations), image_folder
    )


def _annotation(item: SyntheticObject, image_id: int, annotation_id: int) -> dict[str, Any]:
    columns, rows = np.flatnonzero(item.mask.any(axis=0)), np.flatnonzero(item.mask.any(axis=1))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": item.category_id,
        "segmentation": item.polygons,
        "area": float(item.mask.sum()),
        "bbox": [float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)],
        "iscrowd": 0,
    }


def _is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    try:
        content = json.loads(_json_file(folder, parameters["split"]).read_text())
        there = set(os.listdir(folder / parameters["split"]))
        return content["info"]["parameters"] == parameters and there.issuperset(
            image["file_name"] for image in content["images"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Missing, cut off, or somebody else's: not this set, so it is drawn.
        return False


def _json_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _file_name(index: int) -> str:
    return f"{index + 1:012d}.jpg"
