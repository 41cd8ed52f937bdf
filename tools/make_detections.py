#!/usr/bin/env python
"""Writes COCO results for benchmarks and tests of evaluation: perturbed ground truth.

python tools/make_detections.py datasets/coco/annotations/instances_val2017.json detections.json
"""

import argparse
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

WRONG_CLASS = 0.15  # probability that a detected object has a random class
BACKGROUND = 0.1  # probability that a detection is not of an object
MAX_JITTER = 0.25  # largest standard deviation of the shift, relative to the object's size, and of the log scale
ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
ELLIPSE = 0.5 + 0.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # in the unit square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="a COCO annotation file with boxes and masks")
    parser.add_argument("output", help="the results file to write")
    parser.add_argument("--per-image", type=int, default=120, help="detections in each image (default: 120)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with open(args.annotations) as file:
        results = perturbed_detections(json.load(file), args.per_image, args.seed)
    with open(args.output, "w") as file:
        json.dump(results, file)
    print(f"{len(results)} detections in {args.output}")


def perturbed_detections(annotations: dict[str, Any], per_image: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Returns COCO results for COCO annotations. Masks are RLE; scores are random and may be equal."""
    objects = defaultdict(list)
    for annotation in annotations["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    category_ids = [category["id"] for category in annotations["categories"]]
    results = []
    for image in annotations["images"]:
        rng = np.random.default_rng([seed, image["id"]])
        results += [_detection(rng, image, objects[image["id"]], category_ids) for _ in range(per_image)]
    return results


def _detection(
    rng: np.random.Generator, image: dict[str, Any], objects: list[dict[str, Any]], category_ids: list[int]
) -> dict[str, Any]:
    size = np.array([image["width"], image["height"]], dtype=float)
    jitter = rng.uniform(0, MAX_JITTER)
    shift, log_scale = rng.normal(0, jitter, (2, 2))
    category_id = category_ids[rng.integers(len(category_ids))]
    if not objects or rng.random() < BACKGROUND:
        extent = size * rng.uniform(0.05, 0.6, 2)
        corner = rng.uniform(0, size - extent)
        polygons = [corner + extent * ELLIPSE]
        jitter = MAX_JITTER
    else:
        hit = objects[rng.integers(len(objects))]
        if rng.random() >= WRONG_CLASS:
            category_id = hit["category_id"]
        old, extent = np.array(hit["bbox"][:2]), np.array(hit["bbox"][2:])
        polygons = [old + extent * ELLIPSE]
        if isinstance(hit.get("segmentation"), list) and hit["segmentation"]:
            polygons = [np.reshape(polygon, (-1, 2)) for polygon in hit["segmentation"]]
        corner = old + shift * extent
        scale = np.exp(log_scale)
        polygons = [corner + (points - old) * scale for points in polygons]
        extent = extent * scale
    low, high = np.clip([corner, corner + extent], 0, size)
    rles = mask_util.frPyObjects([np.clip(p, 0, size).ravel().tolist() for p in polygons], int(size[1]), int(size[0]))
    rle = mask_util.merge(rles)
    # Accurate detections have higher scores on average.
    score = np.clip(0.5 * rng.random() + 0.5 * (1 - jitter / MAX_JITTER) * rng.random(), 0.001, 1)
    return {
        "image_id": image["id"],
        "category_id": category_id,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "score": round(float(score), 3),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


if __name__ == "__main__":
    main()
