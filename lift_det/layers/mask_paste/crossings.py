"""Where pasted masks change, found without looking at their pixels.

Along a column of the image a pasted mask is a broken line: it is bilinear in the mask, so between the centres of two
neighbouring rows of the mask it is straight and crosses the threshold at most once. Knowing the line at those M + 2
*knots* (the mask's M rows and the zeros on either side) is enough to know where it crosses, however many pixels lie
between them: a box costs width × (M + 2), not width × height.

That gives the crossings of the exact value, while detectron2's samples carry rounding errors. The two are within a
bound of each other (``_ERROR``), so where the line is further than that from the threshold, the bit is certain. The few
pixels where it is not are sampled by the very function and with the very coordinates that detectron2 uses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import grid_coordinates

# How far a sample and our line can be apart: this many ε · (M + 1) · (highest - lowest value, zero counted), where ε is
# half the distance from 1 to the next number. A pixel's place in its box is a difference, divided by a difference,
# doubled and less one, which in the grid's -1 to 1 (a mask exceeds it by half a cell, so 2 at most) is off by 8ε; one
# added, times M, less one, halved, it becomes 9εM cells. On each axis the value changes by at most highest - lowest in
# a cell: 18εM. Weights, four products and three sums add 10ε, our interpolation and the threshold's subtraction 16ε.
_ERROR = 26
# Single pixels are given to grid_sample in rows of so many.
_SAMPLES_IN_A_ROW = 64


def find_changes(
    masks: Tensor, boxes: Tensor, regions: Tensor, image_shape: tuple[int, int], threshold: float
) -> Tensor:
    """The pixels of pasted masks that differ from the one before them, column by column.

    Args:
        masks: (N, M, M), floating point.
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        regions: (N, 4) int64, from :func:`lift_det.layers.mask_paste.geometry.sampled_regions`.
        image_shape: height and width.
        threshold: at least 0.

    Returns:
        int64, as :func:`lift_det.layers.mask_paste.rle.encode` takes them.
    """
    height, width = image_shape
    size = masks.shape[-1]
    left, top, right, bottom = regions.unbind(1)
    origin, cell, knots = _cells(masks, boxes, threshold)

    # Every column of every box, at its place between two columns of the mask: -1 is the zeros before the first, M those
    # after the last. (Here and below: index_select takes a quarter of the time of brackets, and with int32 an eighth.)
    widths = (right - left) * (bottom > top)
    owner = torch.repeat_interleave(widths).int()  # (C,) which mask
    x = torch.arange(len(owner), device=masks.device) - (widths.cumsum(0) - widths - left).index_select(0, owner)
    place = (x + 0.5 - origin[:, 0].index_select(0, owner)) / cell[:, 0].index_select(0, owner) - 0.5
    place = place.clamp(-1, size)
    before = place.floor().clamp(max=size - 1)
    row = owner * (size + 2) + before.int() + 1
    fraction = (place - before).float()[:, None]
    line = torch.lerp(knots.index_select(0, row), knots.index_select(0, row + 1), fraction).flatten()  # (C * (M + 2),)

    # Segment s lies between knots s and s + 1; the one from a column's last knot to the next column's first has no
    # pixels. It is certain where both knots are clear of the threshold on the same side.
    error = _error(masks)
    clear = F.hardshrink(line, error)
    crossed = torch.logical_not(clear[:-1] * clear[1:] > 0).nonzero()[:, 0].int()  # (J,)
    column = crossed // (size + 2)
    segment = crossed - column * (size + 2)
    mask = owner.index_select(0, column)
    start = line.index_select(0, crossed).double()
    end = line.index_select(0, crossed + 1).double()

    # Pixels from `first` to before `last` are in the segment; those before the knots and after them in the outermost.
    knot = torch.arange(size + 3, device=masks.device)
    knot_y = origin[:, 1:] + (knot - 0.5) * cell[:, 1:] - 0.5  # (N, M + 3), 0 is the centre of the image's first row
    knot_row = torch.minimum(torch.maximum(knot_y.ceil(), top[:, None]), bottom[:, None])
    knot_row[:, 0], knot_row[:, -2:] = top.double(), bottom.double()[:, None]
    at = mask * (size + 3) + segment
    first, last = knot_row.flatten().index_select(0, at), knot_row.flatten().index_select(0, at + 1)
    # The part of the segment where the line is within the error of the threshold. If it reaches a knot, it takes that
    # end of the segment whole, and a flat line is all in it.
    rise = end - start
    middle, reach = -start / rise, error / rise.abs()
    flat = rise == 0
    low = (middle - reach).masked_fill_((middle <= reach) | flat, -math.inf)
    high = (middle + reach).masked_fill_((middle + reach >= 1) | flat, math.inf)
    y, cell_y = knot_y.flatten().index_select(0, at), cell[:, 1].index_select(0, mask)
    unsure = torch.minimum(torch.maximum((y + low * cell_y).ceil_(), first), last).int()
    sure = torch.minimum(torch.maximum((y + high * cell_y).floor_() + 1, first), last).int()

    # Marks, 2 * position + bit, say "from here on, up to the next mark, the mask is so": one for each unsure pixel,
    # then one where the line is sure again, with its sign at the segment's end.
    starts = 2 * (owner.long() * (height * width + 1) + x * height)
    marks = starts.index_select(0, column).add_(sure, alpha=2).add_(end > 0)
    sampled = sure - unsure
    of = torch.repeat_interleave(sampled)  # (S,) the unsure pixels' segments
    if len(of):
        order = sampled.cumsum(0)
        back = order[of] - torch.arange(len(of), device=of.device)  # from `sure`, 1 or more
        values = _sample(masks, boxes, mask[of], x[column[of]], sure[of] - back)
        pixels = (marks[of] & ~1) - 2 * back + (values >= threshold)
        order += torch.arange(len(order), device=of.device)
        marks = marks.new_empty(len(marks) + len(of)).scatter_(0, order, marks)
        marks.scatter_(0, order[of] - back, pixels)
    return _keep_changes(marks, len(masks), height * width)


def _error(masks: Tensor) -> float:
    """The bound at ``_ERROR``. The coordinates are float32, and less if the masks are."""
    epsilon = max(torch.finfo(masks.dtype).eps, torch.finfo(torch.float32).eps) / 2
    low, high = masks.aminmax()
    return _ERROR * epsilon * (masks.shape[-1] + 1) * (max(float(high), 0.0) - min(float(low), 0.0))


def _cells(masks: Tensor, boxes: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each box's corner and the size of its cells in pixels, (N, 2) float64; and the masks with zeros around, less the
    threshold, the columns of all below each other: (N * (M + 2), M + 2) float32."""
    origin, extent = boxes[:, :2].double(), (boxes[:, 2:] - boxes[:, :2]).double()
    knots = F.pad(masks.float().transpose(1, 2), (1, 1, 1, 1)) - threshold
    # A box without an extent has no cells, and detectron2's function answers all the same. With knots at the threshold
    # all its pixels are sampled, whatever the cells.
    regular = ((extent > 0) & extent.isfinite()).all(1)
    origin, extent = torch.where(regular[:, None], origin, 0.0), torch.where(regular[:, None], extent, 1.0)
    knots = torch.where(regular[:, None, None], knots, 0.0)
    return origin, extent / masks.shape[-1], knots.flatten(0, 1)


def _keep_changes(marks: Tensor, number: int, area: int) -> Tensor:
    """Of ascending marks the positions that change what is: a position's last mark, unlike the one before it."""
    final = torch.ones_like(marks, dtype=torch.bool)
    final[:-1] = marks[1:] >> 1 != marks[:-1] >> 1
    marks = marks.masked_select(final)
    # A mask's last mark says False, so the next one begins with that.
    bits = marks & 1
    changed = bits.bool()
    changed[1:] = bits[1:] != bits[:-1]
    changes = (marks >> 1).masked_select(changed)
    # What changes past a mask's last pixel is not in the image.
    past = torch.arange(1, number + 1, device=marks.device) * (area + 1) - 1
    if len(changes) and bool((changes[torch.searchsorted(changes, past).clamp(max=len(changes) - 1)] == past).any()):
        changes = changes.masked_select(changes % (area + 1) != area)
    return changes


def _sample(masks: Tensor, boxes: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The values of masks at single pixels, (S,), as detectron2's paste computes them, to the bit.

    grid_sample wants as many samples of each mask as of any other: the pixels, which come ordered by mask, are cut into
    short rows, each with a copy of its mask.
    """
    of_mask = torch.bincount(mask, minlength=len(masks))
    rows_of_mask = (of_mask + _SAMPLES_IN_A_ROW - 1) // _SAMPLES_IN_A_ROW
    rank = torch.arange(len(mask), device=mask.device) - (of_mask.cumsum(0) - of_mask)[mask]
    owner = torch.repeat_interleave(rows_of_mask)  # (R,)
    slot = (rows_of_mask.cumsum(0) - rows_of_mask)[mask] * _SAMPLES_IN_A_ROW + rank
    box = boxes[mask]
    grid = masks.new_zeros(len(owner) * _SAMPLES_IN_A_ROW, 2)
    grid[slot, 0] = grid_coordinates(x, box[:, 0], box[:, 2]).to(masks.dtype)
    grid[slot, 1] = grid_coordinates(y, box[:, 1], box[:, 3]).to(masks.dtype)
    grid = grid.view(len(owner), 1, _SAMPLES_IN_A_ROW, 2)
    return F.grid_sample(masks[owner, None], grid, align_corners=False).flatten()[slot]
