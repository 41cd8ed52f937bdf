"""Facts about the polygons and run-length encoded masks of COCO's annotation files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely


@dataclass
class PolygonFacts:
    """Of N polygons.

    Attributes:
        faults: why each cannot be used, as ``(kind, what it is)``; None for one that can.
        bounds: of each, left, top, right and bottom in pixels; NaN where there are none.
        crossings: of the polygons that cross themselves, by index: where, and what that costs.
    """

    faults: list[tuple[str, str] | None]
    bounds: list[list[float]]
    crossings: dict[int, str]


def polygon_facts(polygons: Sequence[Any]) -> PolygonFacts:
    """Measures many polygons at once: a hundred times as quick as one by one.

    Args:
        polygons: what stands in a COCO file in place of flat lists ``[x0, y0, x1, y1, ...]``.
    """
    faults = [_shape_fault(polygon) for polygon in polygons]
    bounds = np.full((len(polygons), 4), math.nan)
    good = np.array([i for i, fault in enumerate(faults) if fault is None], dtype=np.int64)
    if not len(good):
        return PolygonFacts(faults, bounds.tolist(), {})
    lengths = np.array([len(polygons[i]) // 2 for i in good])
    points = np.array(list(chain.from_iterable(polygons[i] for i in good)), dtype=np.float64).reshape(-1, 2)
    starts = np.cumsum(lengths) - lengths
    bounds[good, :2] = np.minimum.reduceat(points, starts)
    bounds[good, 2:] = np.maximum.reduceat(points, starts)

    # A polygon is closed by its first point once more.
    shapes = shapely.polygons(shapely.linearrings(points, indices=np.repeat(np.arange(len(good)), lengths)))
    invalid = np.flatnonzero(~shapely.is_valid(shapes))
    crossings = {}
    for i, reason in zip(invalid, shapely.is_valid_reason(shapes[invalid]), strict=True):
        area = shapely.make_valid(shapes[i]).area
        if area == 0:
            faults[good[i]] = ("polygon of zero area", "all its points are on one line")
        # "Ring Self-intersection" is one that touches itself, which takes nothing from its inside.
        elif reason.startswith("Self-intersection"):
            x, y = (float(number) for number in reason[reason.index("[") + 1 : -1].split())
            # what fvcore's crop makes of it before it cuts
            lost = 1 - shapely.buffer(shapes[i], 0).area / area
            said = f"; {lost:.0%} of it is lost where training crops the image" if lost >= 0.01 else ""
            crossings[int(good[i])] = f"crosses itself at ({x:.1f}, {y:.1f}){said}"
    return PolygonFacts(faults, bounds.tolist(), crossings)


def _shape_fault(polygon: Any) -> tuple[str, str] | None:
    kind = "not a polygon"
    if not isinstance(polygon, list):
        return kind, f"it is {polygon!r:.30}, no list of numbers"
    if not all(type(number) in (int, float) and math.isfinite(number) for number in polygon):
        return kind, f"not all of its {len(polygon)} coordinates are finite numbers"
    if len(polygon) % 2:
        return "polygon with an odd count of coordinates", f"{len(polygon)} numbers are no pairs of x and y"
    if len(polygon) < 6:
        return "polygon with fewer than 3 points", f"it has {len(polygon) // 2}"
    return None


def rle_fault(segmentation: dict[str, Any], width: int, height: int) -> str:
    """Why a run-length encoded mask cannot be used on an image of that size in pixels; empty if it can.

    Whatever passes can be given to pycocotools, which writes where it should not on some of the others.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        return f"its size is {size!r:.40}, the image's [height, width] is [{height}, {width}]"
    if isinstance(counts, str):
        runs = _decode_counts(counts)
    elif isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        runs = np.array(counts, dtype=np.int64)
    else:
        return f"its counts are neither a string nor a list of whole numbers: {counts!r:.40}"
    if runs is None or (runs < 0).any() or runs.sum() != width * height:
        found = "are not decodable" if runs is None or (runs < 0).any() else f"count {runs.sum()} pixels"
        return f"its counts {found}, the image has {width} x {height} = {width * height}"
    if runs[1::2].sum() == 0:
        return "it is empty"
    return ""


def _decode_counts(counts: str) -> np.ndarray | None:
    """The runs that COCO's compressed counts stand for, None if they stand for none.

    Each run is written in 5 bits a character, the lowest first; 32 marks that more follow, and 16 in the last that it
    is negative. From the fourth on it is the difference from the run two before.
    """
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    last = (digits & 32) == 0
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(digits)) - np.repeat(first, np.diff([*first, len(digits)]))
    if place.max() > 6:  # of 35 bits: no image is that large
        return None
    runs = np.add.reduceat((digits & 31) << (5 * place), first)
    runs -= np.where(digits[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def mask_area_and_box(segmentation: list[list[float]] | dict[str, Any], width: int, height: int) -> tuple[float, list]:
    """Pixels of a mask that can be used, and its box as ``[x, y, width, height]``, as COCO's own code has them."""
    rle = mask_util.frPyObjects(segmentation, height, width) if _needs_encoding(segmentation) else segmentation
    if isinstance(rle, list):
        rle = mask_util.merge(rle)
    return float(mask_util.area(rle)), mask_util.toBbox(rle).tolist()


def _needs_encoding(segmentation: list[list[float]] | dict[str, Any]) -> bool:
    return isinstance(segmentation, list) or isinstance(segmentation["counts"], list)
