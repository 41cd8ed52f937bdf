"""Checks of polygons and run-length encoded masks, which pycocotools reads without any."""

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
    """Checks polygons or an RLE for an image of that size in pixels; raises Unusable.

    Returns:
        The segmentation without invalid polygons, its box ``[x, y, width, height]``, and (kind, text) of findings.
    """
    if isinstance(segmentation, dict):
        _check_rle(segmentation, width, height)
        return segmentation, mask_area_and_box(segmentation, width, height)[1], []
    if not isinstance(segmentation, list):
        raise Unusable("invalid segmentation", f"expected polygons or RLE, got {segmentation!r:.40}")
    usable, bounds, faults, crossings = [], [], [], []
    for number, polygon in enumerate(segmentation, start=1):
        name = f"polygon {number} of {len(segmentation)}"
        try:
            shape = _read_polygon(polygon, width, height)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        usable.append(polygon)
        bounds.append(shape.bounds)
        reason = "" if shape.is_valid else shapely.is_valid_reason(shape)
        if reason.startswith("Self-intersection"):  # not "Ring Self-intersection", which only touches itself
            crossings.append(("polygon that crosses itself", f"{name}: {reason}"))
    if not usable:
        raise Unusable("invalid polygon", faults[0])
    lefts, tops, rights, bottoms = zip(*bounds, strict=True)
    left, top = min(lefts), min(tops)
    notes = [*(("invalid polygon", f"{fault}; removed") for fault in faults), *crossings]
    return usable, [left, top, max(rights) - left, max(bottoms) - top], notes


def _read_polygon(polygon: Any, width: int, height: int) -> shapely.Polygon:
    """Raises a ValueError if the polygon cannot be used."""
    if not are_coordinates(polygon) or len(polygon) % 2 or len(polygon) < 6:
        raise ValueError(f"expected x and y of at least 3 points, [x0, y0, x1, y1, ...], got {polygon!r:.60}")
    shape = shapely.polygons(np.array(polygon, dtype=np.float64).reshape(-1, 2))
    left, top, right, bottom = shape.bounds
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise ValueError(f"{polygon!r:.60} lies outside the image of {width} x {height}")
    if not shape.is_valid and shapely.make_valid(shape).area == 0:
        raise ValueError(f"{polygon!r:.60} has no area")
    return shape


def _check_rle(segmentation: Mapping[str, Any], width: int, height: int) -> None:
    """Raises Unusable if the mask is empty, or pycocotools would access memory out of bounds."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    runs: list[int] = []
    if isinstance(counts, str):
        runs = _decode_counts(counts)
    elif isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        runs = counts
    if size != [height, width] or sum(runs) != width * height or sum(runs[1::2]) == 0:
        expected = f"size [{height}, {width}] and counts with the sum {width * height} that are not an empty mask"
        raise Unusable("invalid RLE", f"expected {expected}, got {size!r:.40} and {counts!r:.60}")


def _decode_counts(counts: str) -> list[int]:
    """Returns the run lengths of COCO's compressed counts; an empty list if they are invalid.

    A character minus 48 has 5 bits of a number, lowest first; bit 32 says that more follow, and bit 16 of the last one
    is the sign. From the fourth run on, the number is the difference from the run two before.
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
