"""The PyTorch backend of mask pasting."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import grid_coordinates, sampled_regions
from .rle import encode

# Masks are encoded in groups with about this many pixels in their boxes, to bound memory and to stay in the cache.
_PIXELS_PER_GROUP = 1 << 21
# Bound of the difference between a value computed by _find_changes and detectron2's sample, in units of
# eps / 2 * (M + 1) * (highest - lowest value, 0 included). A coordinate in the box is off by 8 eps/2 (it is at most 2),
# which is 9 M eps/2 in cells after the conversion, and the value changes by at most highest - lowest per cell along
# each axis: 18 M. The weights, products and sums of the bilinear interpolation add 10, ours and the threshold 16.
_ERROR = 26
# Single pixels are passed to grid_sample in rows of this length.
_ROW_LENGTH = 64


def paste_masks(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> Tensor:
    """See :func:`lift_det.layers.paste_masks`. Samples each mask inside of its box."""
    dtype = torch.bool if threshold >= 0 else torch.uint8
    pasted = torch.zeros(len(masks), *image_shape, dtype=dtype, device=masks.device)
    regions = sampled_regions(boxes, image_shape, masks.shape[-1], threshold)
    for mask, box, (x0, y0, x1, y1), out in zip(masks, boxes, regions.tolist(), pasted, strict=True):
        if x0 == x1 or y0 == y1:
            continue
        gx = grid_coordinates(torch.arange(x0, x1, device=box.device), box[None, 0], box[None, 2])
        gy = grid_coordinates(torch.arange(y0, y1, device=box.device), box[None, 1], box[None, 3])
        grid = torch.stack([gx.expand(y1 - y0, -1), gy[:, None].expand(-1, x1 - x0)], dim=2)  # (h, w, 2)
        values = F.grid_sample(mask[None, None], grid[None].to(mask.dtype), align_corners=False)[0, 0]
        out[y0:y1, x0:x1] = values >= threshold if threshold >= 0 else values * 255
    return pasted


def mask_to_rle(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    """See :func:`lift_det.layers.mask_to_rle`."""
    regions = sampled_regions(boxes, image_shape, masks.shape[-1], threshold)
    areas = (regions[:, 2:] - regions[:, :2]).prod(dim=1)
    _, group_sizes = torch.unique_consecutive(areas.cumsum(0) // _PIXELS_PER_GROUP, return_counts=True)
    groups = zip(*(x.split(group_sizes.tolist()) for x in (masks, boxes, regions)), strict=True)
    rles = []
    for group in groups:
        rles += encode(_find_changes(*group, image_shape, threshold), len(group[0]), image_shape)
    return rles


def _find_changes(
    masks: Tensor, boxes: Tensor, regions: Tensor, image_shape: tuple[int, int], threshold: float
) -> Tensor:
    """Returns the positions where pasted masks change, as :func:`.rle.encode` takes them.

    Along an image column, a pasted mask is piecewise linear: it is straight between two *knots*, which are the centres
    of the mask's M rows and of a row of zeros on either side. Crossings of the threshold are computed from the values
    at the knots, so that a box costs width * (M + 2) and not width * height.

    detectron2 samples every pixel, with rounding errors. A pixel whose exact value is within the error bound of the
    threshold is sampled with detectron2's own function and coordinates; for all others the bit is certain.
    """
    height, width = image_shape
    size = masks.shape[-1]
    left, top, right, bottom = regions.unbind(1)
    origin, cell, knots = _cells(masks, boxes, threshold)

    # Values at the knots of all C columns, interpolated between two columns of their mask.
    # index_select takes a quarter of the time of indexing, and an eighth with int32 indices.
    widths = (right - left) * (bottom > top)
    owner = torch.repeat_interleave(widths).int()  # (C,) the column's mask
    x = torch.arange(len(owner), device=masks.device) - (widths.cumsum(0) - widths - left).index_select(0, owner)
    mask_x = (x + 0.5 - origin[:, 0].index_select(0, owner)) / cell[:, 0].index_select(0, owner) - 0.5
    mask_x = mask_x.clamp(-1, size)
    before = mask_x.floor().clamp(max=size - 1)
    row = owner * (size + 2) + before.int() + 1
    fraction = (mask_x - before).float()[:, None]
    line = torch.lerp(knots.index_select(0, row), knots.index_select(0, row + 1), fraction).flatten()  # (C * (M + 2),)

    # Segment s lies between knots s and s + 1. Segments with both knots clear of the threshold on the same side have no
    # change. The segment from a column's last knot to the next column's first one has no pixels.
    epsilon = max(torch.finfo(masks.dtype).eps, torch.finfo(torch.float32).eps) / 2
    lowest, highest = masks.aminmax()
    error = _ERROR * epsilon * (size + 1) * (max(float(highest), 0.0) - min(float(lowest), 0.0))
    clear = F.hardshrink(line, error)
    crossed = torch.logical_not(clear[:-1] * clear[1:] > 0).nonzero()[:, 0].int()  # (J,)
    column = crossed // (size + 2)
    segment = crossed - column * (size + 2)
    mask = owner.index_select(0, column)
    start = line.index_select(0, crossed).double()
    end = line.index_select(0, crossed + 1).double()

    # The pixels of a segment are `first` to `last` - 1; the outermost segments extend to the region's sides.
    knot = torch.arange(size + 3, device=masks.device)
    knot_y = origin[:, 1:] + (knot - 0.5) * cell[:, 1:] - 0.5  # (N, M + 3), 0 is the centre of the image's first row
    knot_row = torch.minimum(torch.maximum(knot_y.ceil(), top[:, None]), bottom[:, None])
    knot_row[:, 0], knot_row[:, -2:] = top.double(), bottom.double()[:, None]
    at = mask * (size + 3) + segment
    first, last = knot_row.flatten().index_select(0, at), knot_row.flatten().index_select(0, at + 1)
    # Pixels within the error of the threshold are `unsure` to `sure` - 1. They extend to the segment's end if they
    # reach a knot, and cover the whole segment if the line is flat.
    rise = end - start
    middle, reach = -start / rise, error / rise.abs()
    flat = rise == 0
    low = (middle - reach).masked_fill_((middle <= reach) | flat, -math.inf)
    high = (middle + reach).masked_fill_((middle + reach >= 1) | flat, math.inf)
    y, cell_y = knot_y.flatten().index_select(0, at), cell[:, 1].index_select(0, mask)
    unsure = torch.minimum(torch.maximum((y + low * cell_y).ceil_(), first), last).int()
    sure = torch.minimum(torch.maximum((y + high * cell_y).floor_() + 1, first), last).int()

    # A mark, 2 * position + bit, gives the mask's value from that position to the next mark. Each segment has a mark at
    # `sure`, with the sign of the line's end, and one for each of its unsure pixels.
    starts = 2 * (owner.long() * (height * width + 1) + x * height)
    marks = starts.index_select(0, column).add_(sure, alpha=2).add_(end > 0)
    sampled = sure - unsure
    of = torch.repeat_interleave(sampled)  # (S,) segments of the unsure pixels
    if len(of):
        order = sampled.cumsum(0)
        back = order[of] - torch.arange(len(of), device=of.device)  # distance from `sure`, 1 or more
        values = _sample(masks, boxes, mask[of], x[column[of]], sure[of] - back)
        pixels = (marks[of] & ~1) - 2 * back + (values >= threshold)
        order += torch.arange(len(order), device=of.device)
        marks = marks.new_empty(len(marks) + len(of)).scatter_(0, order, marks)
        marks.scatter_(0, order[of] - back, pixels)
    return _keep_changes(marks, height * width)


def _cells(masks: Tensor, boxes: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Box corners and cell sizes in pixels, (N, 2) float64, and padded masks less the threshold, one row for each mask
    column: (N * (M + 2), M + 2) float32."""
    origin, extent = boxes[:, :2].double(), (boxes[:, 2:] - boxes[:, :2]).double()
    knots = F.pad(masks.float().transpose(1, 2), (1, 1, 1, 1)) - threshold
    # A box without area has no cells. Knots at the threshold make all of its pixels unsure, so that they are sampled.
    regular = ((extent > 0) & extent.isfinite()).all(1)
    origin, extent = torch.where(regular[:, None], origin, 0.0), torch.where(regular[:, None], extent, 1.0)
    knots = torch.where(regular[:, None, None], knots, 0.0)
    return origin, extent / masks.shape[-1], knots.flatten(0, 1)


def _keep_changes(marks: Tensor, area: int) -> Tensor:
    """The positions of ascending marks at which the value changes."""
    last_of_position = torch.ones_like(marks, dtype=torch.bool)
    last_of_position[:-1] = marks[1:] >> 1 != marks[:-1] >> 1
    marks = marks.masked_select(last_of_position)
    # Each mask's last mark is False, which is also the value that the next mask starts with.
    bits = marks & 1
    changed = bits.bool()
    changed[1:] = bits[1:] != bits[:-1]
    changes = (marks >> 1).masked_select(changed)
    return changes[changes % (area + 1) != area]  # without those past a mask's last pixel


def _sample(masks: Tensor, boxes: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values at single pixels, (S,), equal to those of detectron2's paste.

    grid_sample takes equally many samples of every mask, so the pixels, ordered by mask, are cut into short rows, each
    with a copy of its mask.
    """
    pixels_of_mask = torch.bincount(mask, minlength=len(masks))
    rows_of_mask = (pixels_of_mask + _ROW_LENGTH - 1) // _ROW_LENGTH
    rank = torch.arange(len(mask), device=mask.device) - (pixels_of_mask.cumsum(0) - pixels_of_mask)[mask]
    owner = torch.repeat_interleave(rows_of_mask)  # (R,)
    slot = (rows_of_mask.cumsum(0) - rows_of_mask)[mask] * _ROW_LENGTH + rank
    box = boxes[mask]
    grid = masks.new_zeros(len(owner) * _ROW_LENGTH, 2)
    grid[slot, 0] = grid_coordinates(x, box[:, 0], box[:, 2]).to(masks.dtype)
    grid[slot, 1] = grid_coordinates(y, box[:, 1], box[:, 3]).to(masks.dtype)
    grid = grid.view(len(owner), 1, _ROW_LENGTH, 2)
    return F.grid_sample(masks[owner, None], grid, align_corners=False).flatten()[slot]
