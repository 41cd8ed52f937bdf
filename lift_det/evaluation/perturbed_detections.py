"""Detections made from ground truth, as a mediocre detector might give them: something to time an evaluation on."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

# Shares of the detections: of another class than the object's, and of no object at all.
_WRONG_CLASS = 0.15
_BACKGROUND = 0.1
# Standard deviations of a box's shift and of the logarithm of its scale, in shares of the object's size: the largest,
# below which they are drawn uniformly, so that intersection over union comes in all sizes.
_MAX_JITTER = 0.25
# A shape for detections of nothing, in shares of the box.
_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_ELLIPSE = 0.5 + 0.5 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def perturbed_detections(annotations: dict[str, Any], per_image: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Makes COCO results of COCO annotations: objects shifted and scaled, some of a wrong class, some of no object.

    Scores are random, a little higher where the object was hit well, and rounded to three digits, so that there are
    ties. The detections of an image depend on its id and annotations, the categories and the seed alone.

    Args:
        annotations: what a COCO annotation file holds: ``images`` with sizes, ``annotations`` (polygons or RLE),
            ``categories``.
        per_image: detections in every image, one without objects too.
        seed: of all that is drawn.

    Returns:
        COCO results in the order of the images, each with ``bbox`` (x, y, width, height, in pixels, inside the image)
        and ``segmentation`` (compressed RLE, ``counts`` as ``str``).

    Raises:
        ValueError: ``per_image`` is negative, or there are no categories.
    """
    if per_image < 0:
        raise ValueError(f"per_image must not be negative, got {per_image}.")
    category_ids = [category["id"] for category in annotations["categories"]]
    if not category_ids:
        raise ValueError("The annotations have no categories: there is no class to detect.")
    objects = defaultdict(list)
    for annotation in annotations["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    results = []
    for image in annotations["images"]:
        rng = np.random.default_rng([seed, image["id"]])
        for _ in range(per_image):
            results.append(_detection(rng, image, objects[image["id"]], category_ids))
    return results


def _detection(
    rng: np.random.Generator, image: dict[str, Any], objects: list[dict[str, Any]], category_ids: list[int]
) -> dict[str, Any]:
    """One COCO result in an image."""
    size = np.array([image["width"], image["height"]], dtype=float)
    jitter = rng.uniform(0, _MAX_JITTER)
    shift, log_scale = rng.normal(0, jitter, (2, 2))
    category_id = category_ids[rng.integers(len(category_ids))]
    if not objects or rng.random() < _BACKGROUND:
        extent = size * rng.uniform(0.05, 0.6, 2)
        corner = rng.uniform(0, size - extent)
        polygons: list[np.ndarray] = [corner + extent * _ELLIPSE]
        jitter = _MAX_JITTER
    else:
        hit = objects[rng.integers(len(objects))]
        if rng.random() >= _WRONG_CLASS:
            category_id = hit["category_id"]
        x, y, width, height = hit["bbox"]
        old, extent = np.array([x, y]), np.array([width, height])
        corner = old + shift * extent
        scale = np.exp(log_scale)
        polygons = [corner + (points - old) * scale for points in _polygons(hit)]
        extent = extent * scale
    low, high = np.clip([corner, corner + extent], 0, size)
    rles = mask_util.frPyObjects([np.clip(p, 0, size).ravel().tolist() for p in polygons], int(size[1]), int(size[0]))
    rle = mask_util.merge(rles)
    score = np.clip(0.5 * rng.random() + 0.5 * (1 - jitter / _MAX_JITTER) * rng.random(), 0.001, 1)
    return {
        "image_id": image["id"],
        "category_id": category_id,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "score": round(float(score), 3),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def _polygons(annotation: dict[str, Any]) -> list[np.ndarray]:
    """An object's polygons, each (points, 2) in pixels; of RLE (a crowd) or of none, an ellipse in its box."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        return [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation]
    x, y, width, height = annotation["bbox"]
    return [np.array([x, y]) + np.array([width, height]) * _ELLIPSE]
