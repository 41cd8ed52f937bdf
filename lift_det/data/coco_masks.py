"""Checks of polygons and run-length encoded masks, before pycocotools reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely

#: pycocotools crashes on coordinates from about 1e8 on
_MAX_COORDINATE = 1e6


class Unusable(Exception):
    """An annotation cannot be used; arguments are the kind and text of a finding."""


def are_coordinates(numbers: Any) -> bool:
    """Whether a value is a list of finite numbers that pycocotools can handle."""
    if not isinstance(numbers, list) or not set(map(type, numbers)) <= {int, float}:
        return False
    return all(-_MAX_COORDINATE < number < _MAX_COORDINATE for number in numbers)


def read_mask(segmentation: Any, width: int, height: int) -> tuple[Any, list[float], list[tuple[str, str]]]:
    """Checks polygons or RLE of an image of that size, in pixels; raises Unusable if nothing of it can be used.

    Returns:
        The segmentation without invalid polygons, its box ``[x, y, width, height]``, and (kind, text) of findings.
    """
    if isinstance(segmentation, dict):
        _check_rle(segmentation, width, height)
        return segmentation, mask_area_and_box(segmentation, width, height)[1], []
    if not isinstance(segmentation, list):
        raise Unusable("invalid segmentation", f"expected polygons or RLE, got {segmentation!r:.40}")
    usable, bounds, notes = [], [], []
    for number, polygon in enumerate(segmentation, start=1):
        try:
            polygon_bounds, crossing = _read_polygon(polygon, width, height)
        except ValueError as error:
            notes.append(("invalid polygon", f"polygon {number} of {len(segmentation)} is removed: {error}"))
            continue
        usable.append(polygon)
        bounds.append(polygon_bounds)
        if crossing:
            notes.append(("polygon that crosses itself", f"polygon {number} of {len(segmentation)}: {crossing}"))
    if not usable:
        raise Unusable(*notes[0])
    lefts, tops, rights, bottoms = zip(*bounds, strict=True)
    left, top = min(lefts), min(tops)
    return usable, [left, top, max(rights) - left, max(bottoms) - top], notes


def _read_polygon(polygon: Any, width: int, height: int) -> tuple[tuple[float, float, float, float], str]:
    """Returns left, top, right and bottom, and where it crosses itself; raises a ValueError if it cannot be used."""
    if not are_coordinates(polygon) or len(polygon) % 2 or len(polygon) < 6:
        raise ValueError(f"expected x and y of at least 3 points, [x0, y0, x1, y1, ...], got {polygon!r:.60}")
    shape = shapely.polygons(np.array(polygon, dtype=np.float64).reshape(-1, 2))
    left, top, right, bottom = shape.bounds
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise ValueError(f"it lies outside the image of {width} x {height}: {polygon!r:.60}")
    crossing = ""
    if not shape.is_valid:
        if shape.convex_hull.area == 0:
            raise ValueError(f"its area is zero: {polygon!r:.60}")
        reason = shapely.is_valid_reason(shape)
        if reason.startswith("Self-intersection"):  # not "Ring Self-intersection", which only touches itself
            crossing = reason
    return (left, top, right, bottom), crossing


def _check_rle(segmentation: Mapping[str, Any], width: int, height: int) -> None:
    """Raises Unusable for masks on which pycocotools would access memory out of bounds, and for empty ones."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    runs: list[int] = []
    if isinstance(counts, str):
        runs = _decode_counts(counts)
    elif isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        runs = counts
    if size != [height, width] or sum(runs) != width * height or not sum(runs[1::2]):
        text = (
            f"expected the size [{height}, {width}] and counts of {width * height} pixels, some of them in the mask; "
        )
        raise Unusable("invalid RLE", f"{text}got {size!r:.40} and {counts!r:.60}")


def _decode_counts(counts: str) -> list[int]:
    """The runs of COCO's compressed counts; empty if these are invalid.

    A character holds 5 bits of a run, the lowest first; 32 marks that more follow, and 16 in the last one a negative
    number. From the fourth run on, the difference from the run two before is stored.
    """
    digits = np.frombuffer(counts.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return []
    ends = np.flatnonzero((digits & 32) == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 7:  # more than 35 bits
        return []
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist() if runs.min() >= 0 else []


def mask_area_and_box(segmentation: list | dict[str, Any], width: int, height: int) -> tuple[float, list[float]]:
    """Returns pycocotools' pixel count and box ``[x, y, width, height]`` of valid polygons or a valid RLE."""
    is_compressed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
    rle = segmentation if is_compressed else mask_util.frPyObjects(segmentation, height, width)
    if isinstance(rle, list):
        rle = mask_util.merge(rle)
    return float(mask_util.area(rle)), mask_util.toBbox(rle).tolist()
