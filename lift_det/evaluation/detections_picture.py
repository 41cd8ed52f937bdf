"""A picture of what a detector finds in one image."""

from __future__ import annotations

import math

import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as mask_util

#: longer sides of pictures, in pixels: smaller ones would not hold a word, larger ones a figure of matplotlib's not
SMALLEST, LARGEST = 480, 8192


def draw_detections(image: np.ndarray, instances: Instances, metadata: Metadata, *, enlarge: bool = True) -> np.ndarray:
    """Draws boxes, masks, class names and scores into an image, each class always in its own colour.

    Args:
        image: (H, W, 3) uint8 in RGB; not changed.
        instances: of it, on the CPU; masks as ``pred_masks`` or ``pred_masks_rle``, or none.
        metadata: with ``thing_classes`` and ``thing_colors``.
        enlarge: repeat the pixels of an image whose longer side is below :data:`SMALLEST`, so that names can be read.

    Returns:
        A uint8 RGB picture, as large as the image, enlarged by a whole number, or, of one longer than :data:`LARGEST`,
        reduced to that.
    """
    longer = max(image.shape[:2])
    scale = min(1.0, LARGEST / longer)
    # Not by the visualizer's own scale, which letters follow to a size of nothing. Reduced, a side is to keep a pixel.
    smallest = SMALLEST / longer if enlarge else 1
    factors = tuple(math.ceil(max(smallest, 1 / (scale * side))) for side in image.shape[:2])  # down, across
    visualizer = Visualizer(_enlarge(image, factors), metadata, scale)
    boxes = instances.pred_boxes.tensor.numpy() * (factors[::-1] * 2)
    masks = _masks(instances)
    # One at a time, the large ones first, as the visualizer would: of all masks at once it holds whole images.
    for i in np.argsort(-instances.pred_boxes.area().numpy(), kind="stable"):
        class_number = int(instances.pred_classes[i])
        visualizer.overlay_instances(
            boxes=boxes[i : i + 1],
            masks=None if masks is None else [_enlarge(_bitmask(masks[i]), factors)],
            labels=[f"{metadata.thing_classes[class_number]} {float(instances.scores[i]):.0%}"],
            assigned_colors=[tuple(value / 255 for value in metadata.thing_colors[class_number])],
        )
    return visualizer.output.get_image()


def _masks(instances: Instances) -> list | np.ndarray | None:
    if instances.has("pred_masks_rle"):
        return instances.pred_masks_rle
    return np.asarray(instances.pred_masks) if instances.has("pred_masks") else None


def _bitmask(mask: dict | np.ndarray) -> np.ndarray:
    return mask_util.decode(mask) if isinstance(mask, dict) else mask.astype(np.uint8)


def _enlarge(array: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    return array if factors == (1, 1) else array.repeat(factors[0], axis=0).repeat(factors[1], axis=1)
