"""A synthetic detection dataset in COCO's layout, for tests and tutorials.

Textured circles, squares, triangles and stars overlap on cluttered backgrounds. The class determines the shape, and the
texture of three objects in four, but not the colors.
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

from .shapes import CLASS_NAMES, background, contrasting_colors, coverage, mask_to_polygons, outline, texture

SPLITS = ("train", "val")
CATEGORIES = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES, start=1)]

_DRAWING_VERSION = 1  # increase it if the drawing changes, so that existing files are replaced
# Chroma subsampling would blur colors across outlines.
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
_DIAMETERS = (0.14, 0.65)  # relative to the image's side
_MIN_VISIBLE = 0.4  # visible share of each object's area
_MIN_PART_AREA = 12  # pixels


@dataclass(frozen=True)
class SyntheticObject:
    """A drawn object: its category id, its visible pixels, (H, W) bool, and their polygons as in COCO."""

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
    """Writes ``synthetic/annotations/instances_{train,val}.json`` and ``synthetic/{train,val}/*.jpg`` below a folder.

    A split is not drawn again if it is complete and has the same parameters. The images do not depend on their number.

    Args:
        root: the folder to which ``DETECTRON2_DATASETS`` is set.
        num_train, num_val: number of images in each split, at least 1.
        image_size: side of the square images in pixels, at least 64.
        seed: random seed.
        min_objects, max_objects: number of objects in each image; fewer if there is no space, but at least one.

    Returns:
        The folder ``<root>/synthetic``.

    Raises:
        ValueError: a parameter is out of range.
        OSError: the folder cannot be written.
    """
    if min(num_train, num_val) < 1:
        raise ValueError(f"num_train and num_val must be at least 1, got {num_train} and {num_val}.")
    folder = Path(root) / "synthetic"
    for split, count in zip(SPLITS, (num_train, num_val), strict=True):
        parameters: dict[str, Any] = {"drawing_version": _DRAWING_VERSION, "split": split, "num_images": int(count)}
        parameters |= {"image_size": int(image_size), "seed": int(seed)}
        parameters |= {"min_objects": int(min_objects), "max_objects": int(max_objects)}
        if not _is_finished(folder, parameters):
            _write_split(folder, parameters)
    return folder


def draw_synthetic_image(
    split: str, index: int, image_size: int = 128, seed: int = 0, min_objects: int = 2, max_objects: int = 5
) -> tuple[np.ndarray, list[SyntheticObject]]:
    """Draws the image with the id ``index + 1``; the other arguments are those of :func:`write_synthetic_coco`.

    Returns:
        uint8 (image_size, image_size, 3) in RGB, and the objects from back to front.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    if image_size < 64 or min(seed, index) < 0:
        raise ValueError(f"Expected image_size >= 64, seed >= 0 and index >= 0, got {image_size}, {seed} and {index}.")
    if not 1 <= min_objects <= max_objects:
        raise ValueError(f"Expected 1 <= min_objects <= max_objects, got {min_objects} and {max_objects}.")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image = background(rng, image_size)
    num_objects = int(rng.integers(min_objects, max_objects + 1))
    objects: list[SyntheticObject] = []
    full_areas: list[int] = []
    tries = 0
    # The loop ends because some position of a single object always fits.
    while len(objects) < num_objects and (tries < 20 * num_objects or not objects):
        tries += 1
        class_index = int(rng.integers(len(CLASS_NAMES)))
        diameter = float(np.exp(rng.uniform(*np.log(_DIAMETERS)))) * image_size
        angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.0)
        points = outline(CLASS_NAMES[class_index], diameter, angle, stretch)
        points += rng.uniform(0.3 * diameter, image_size - 0.3 * diameter, 2)
        alpha, (left, top) = coverage(points)
        full_area = int((alpha >= 0.5).sum())
        bottom, right = top + alpha.shape[0], left + alpha.shape[1]
        inside = np.s_[max(top, 0) : min(bottom, image_size), max(left, 0) : min(right, image_size)]
        alpha = alpha[max(-top, 0) : image_size - top, max(-left, 0) : image_size - left]
        mask = np.zeros((image_size, image_size), bool)
        mask[inside] = alpha >= 0.5
        placed = _place_in_front(objects, SyntheticObject(class_index + 1, mask, []), [*full_areas, full_area])
        if placed is None:
            continue
        objects = placed
        full_areas.append(full_area)
        colors = contrasting_colors(rng, image[mask].mean(axis=0))
        fill = texture(rng, CLASS_NAMES[class_index], *alpha.shape, colors)
        image[inside] += alpha[..., None] * (fill - image[inside])
    image += rng.normal(0, rng.uniform(0, 6), image.shape).astype(np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), objects


def _place_in_front(
    behind: list[SyntheticObject], front: SyntheticObject, full_areas: list[int]
) -> list[SyntheticObject] | None:
    """Adds an object; returns None if it hides too much of another one, or if an object has tiny parts or holes."""
    result = []
    for item, full_area in zip([*behind, front], full_areas, strict=True):
        is_hidden = item is not front and bool((item.mask & front.mask).any())
        if item.polygons and not is_hidden:
            result.append(item)
            continue
        mask = item.mask & ~front.mask if is_hidden else item.mask
        polygons = mask_to_polygons(mask)
        if polygons is None or mask.sum() < max(_MIN_VISIBLE * full_area, _MIN_PART_AREA):
            return None
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        if stats[1:, cv2.CC_STAT_AREA].min() < _MIN_PART_AREA:
            return None
        result.append(SyntheticObject(item.category_id, mask, polygons))
    return result


def _write_split(folder: Path, parameters: dict[str, Any]) -> None:
    split, count, size = parameters["split"], parameters["num_images"], parameters["image_size"]
    json_file = _json_file(folder, split)
    image_folder = folder / split
    image_folder.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    # After an interruption, old annotations must not describe new images.
    json_file.unlink(missing_ok=True)
    for path in image_folder.iterdir():
        if re.fullmatch(r"\d{12}\.jpg", path.name) and not 1 <= int(path.stem) <= count:
            path.unlink()

    images, annotations = [], []
    keys = ("image_size", "seed", "min_objects", "max_objects")
    for index in range(count):
        file_name = f"{index + 1:012d}.jpg"
        image, objects = draw_synthetic_image(split, index, **{key: parameters[key] for key in keys})
        # cv2.imwrite does not raise if the disk is full.
        (image_folder / file_name).write_bytes(cv2.imencode(".jpg", image[..., ::-1], _JPEG)[1].tobytes())
        images.append({"id": index + 1, "file_name": file_name, "width": size, "height": size, "license": 1})
        for item in objects:
            left, top, width, height = cv2.boundingRect(item.mask.astype(np.uint8))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": index + 1,
                "category_id": item.category_id,
                "segmentation": item.polygons,
                "area": float(item.mask.sum()),
                "bbox": [float(left), float(top), float(width), float(height)],
                "iscrowd": 0,
            }
            annotations.append(annotation)
    content = {
        "info": {"description": "lift_det synthetic shapes", "version": "1.0", "parameters": parameters},
        "licenses": [{"id": 1, "name": "drawn by lift_det: no rights reserved", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    write_text_atomically(json_file, json.dumps(content))
    logger = logging.getLogger(f"detectron2.{__name__}")
    logger.info("Drew %d images with %d objects into '%s'.", count, len(annotations), image_folder)


def _is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    try:
        content = json.loads(_json_file(folder, parameters["split"]).read_text())
        found = set(os.listdir(folder / parameters["split"]))
        file_names = {image["file_name"] for image in content["images"]}
        return content["info"]["parameters"] == parameters and file_names <= found
    except (OSError, ValueError, KeyError, TypeError):  # the file is missing, incomplete or another one
        return False


def _json_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"
