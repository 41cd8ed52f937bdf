"""Binary masks as COCO polygons along pixel edges, exact when pycocotools draws them again."""

from __future__ import annotations

import cv2
import numpy as np


def mask_to_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Traces the outlines of a mask.

    The polygons run along pixel edges, so that a single pixel at (x, y) becomes the square from (x, y) to
    (x + 1, y + 1): COCO's frame, in which a coordinate is 0 at the image's edge and not at the first pixel's centre.

    Args:
        mask: (H, W) bool or uint8, non-zero inside.

    Returns:
        One flat list ``[x0, y0, x1, y1, ...]`` in pixels for each 8-connected part (empty for an empty mask), or
        None if a part has a hole, which COCO's polygons cannot express.
    """
    mask = np.asarray(mask, np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    # Contours run through pixel centres. On a mask enlarged by two, a pixel's first half has an even coordinate and
    # its second half an odd one, so (u + 1) // 2 takes each to the pixel edge on its side, at concave corners too.
    doubled = np.repeat(np.repeat(mask[top : top + height, left : left + width], 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():
        return None
    # Floats: detectron2's transforms compute in the type that they are given and would cut scaled integers off.
    return [(_corners((c[:, 0] + 1) // 2) + (left, top)).astype(float).ravel().tolist() for c in contours]


def _corners(points: np.ndarray) -> np.ndarray:
    """(K, 2) integer points along pixel edges -> (C, 2), without repeats and points inside straight runs."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    # Where a part touches itself at a corner the path may turn back on itself; a cross product of 0 alone would
    # drop that point, so straight on is asked for.
    straight = (np.sign(before) == np.sign(after)).all(axis=1)
    return points[~straight]
