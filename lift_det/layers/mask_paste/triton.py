"""The Triton backend of mask pasting.

Samples are computed in float32 as by :func:`torch.nn.functional.grid_sample`, except that products and sums are never
fused. Pixels within rounding of the threshold may therefore differ from detectron2's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import sampled_regions
from .rle import encode

# Columns and rows of the image that a program processes at a time.
_COLUMNS, _ROWS = 32, 32
# Without fusion, because one launch counts changes and another finds them: both have to compute the same values.
_LAUNCH = dict(COLUMNS=_COLUMNS, ROWS=_ROWS, num_warps=4, enable_fp_fusion=False)


@triton.jit
def _place(pixel, low, high, size):
    """Converts image pixels to mask cells, where 0 is the first cell's centre. Pixels far from the box, and all pixels
    of a box without area, become cells outside of the mask."""
    place = tl.div_rn(pixel.to(tl.float32) + 0.5 - low, high - low) * 2 - 1
    place = ((place + 1) * size - 1) * 0.5
    place = tl.where(place == place, place, -2.0)
    return tl.minimum(tl.maximum(place, -2.0), size + 1.0)


@triton.jit
def _cell(mask_ptr, x, y, size):
    """Values of the mask, zero outside."""
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    return tl.load(mask_ptr + y * size + x, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _bits(mask_ptr, box_ptr, x, y, left, top, right, bottom, size, threshold):
    """Whether image pixels (x, y) are in the pasted mask; False outside of the region."""
    px = _place(x, tl.load(box_ptr).to(tl.float32), tl.load(box_ptr + 2).to(tl.float32), size)
    py = _place(y, tl.load(box_ptr + 1).to(tl.float32), tl.load(box_ptr + 3).to(tl.float32), size)
    fx, fy = tl.floor(px), tl.floor(py)
    x0, y0 = fx.to(tl.int32), fy.to(tl.int32)
    wx, wy = px - fx, py - fy
    value = _cell(mask_ptr, x0, y0, size) * (1 - wx) * (1 - wy)
    value += _cell(mask_ptr, x0 + 1, y0, size) * wx * (1 - wy)
    value += _cell(mask_ptr, x0, y0 + 1, size) * (1 - wx) * wy
    value += _cell(mask_ptr, x0 + 1, y0 + 1, size) * wx * wy
    return (x >= left) & (x < right) & (y >= top) & (y < bottom) & (value >= threshold)


@triton.jit
def _paste_kernel(
    masks_ptr, boxes_ptr, regions_ptr, out_ptr, size, height, width, threshold,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes masks into a zeroed uint8 (N, H, W). Programs: (columns, rows, mask)."""
    n = tl.program_id(2).to(tl.int64)
    left, top = tl.load(regions_ptr + n * 4), tl.load(regions_ptr + n * 4 + 1)
    right, bottom = tl.load(regions_ptr + n * 4 + 2), tl.load(regions_ptr + n * 4 + 3)
    x_start, y_start = tl.program_id(0) * COLUMNS, tl.program_id(1) * ROWS
    if (x_start < right) & (x_start + COLUMNS > left) & (y_start < bottom) & (y_start + ROWS > top):
        x = (x_start + tl.arange(0, COLUMNS))[None, :]
        y = (y_start + tl.arange(0, ROWS))[:, None]
        bits = _bits(masks_ptr + n * size * size, boxes_ptr + n * 4, x, y, left, top, right, bottom, size, threshold)
        place = (n * height + y) * width + x
        tl.store(out_ptr + place, bits.to(tl.uint8), mask=(x < width) & (y < height))


@triton.jit
def _changes_kernel(
    masks_ptr, boxes_ptr, regions_ptr, ends_ptr, out_ptr, size, height, width, threshold,
    WRITE: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Finds the pixels that differ from the previous one in column order. Programs: (columns, mask).

    If not ``WRITE``, stores the number of changes of each column in ``ends`` (N, W). If ``WRITE``, ``ends`` holds the
    cumulative sum of those numbers, and positions n * (H * W + 1) + x * H + y are written to ``out`` up to there.
    """
    n = tl.program_id(1).to(tl.int64)
    left, top = tl.load(regions_ptr + n * 4), tl.load(regions_ptr + n * 4 + 1)
    right, bottom = tl.load(regions_ptr + n * 4 + 2), tl.load(regions_ptr + n * 4 + 3)
    mask_ptr, box_ptr = masks_ptr + n * size * size, boxes_ptr + n * 4
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ends = ends_ptr + n * width + columns
    count = tl.zeros([COLUMNS], dtype=tl.int64)
    if WRITE:  # starts at the previous column's end
        first = (n == 0) & (columns == 0)
        count = tl.load(ends - 1, mask=(columns < width) & (first == 0), other=0)
    # Includes the column and the row after the region, where its last runs end. The row above the region is replaced by
    # the image's first row, where a run ends that reaches the end of the previous column.
    if (tl.program_id(0) * COLUMNS <= right) & (tl.program_id(0) * COLUMNS + COLUMNS > left) & (top < bottom):
        x = columns[:, None]
        for y_start in range(tl.maximum(top - 1, 0), bottom + 1, ROWS):
            y = y_start + tl.arange(0, ROWS)[None, :]
            y = tl.where(y < top, 0, y)
            bits = _bits(mask_ptr, box_ptr, x, y, left, top, right, bottom, size, threshold)
            x_before = tl.where(y == 0, x - 1, x)
            y_before = tl.where(y == 0, height, y) - 1
            before = _bits(mask_ptr, box_ptr, x_before, y_before, left, top, right, bottom, size, threshold)
            changed = ((bits != before) & (y < height) & (x < width)).to(tl.int32)
            if WRITE:
                place = count[:, None] + tl.cumsum(changed, axis=1) - 1
                position = n * (height * width + 1) + x.to(tl.int64) * height + y
                tl.store(out_ptr + place, position, mask=changed != 0)
            count += tl.sum(changed, axis=1)
    if not WRITE:
        tl.store(ends, count, mask=columns < width)


def unmet_condition(masks: Tensor, threshold: float) -> str:
    """Returns why the kernels cannot take these arguments, or an empty string."""
    if masks.device.type != "cuda" and isinstance(_paste_kernel, triton.JITFunction):
        return f"needs CUDA tensors, got tensors on {masks.device}"
    if masks.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"needs float32, float16 or bfloat16 masks, got {masks.dtype}"
    if threshold < 0:
        return f"needs a threshold of 0 or more, got {threshold}"
    return ""


def paste_masks(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> Tensor:
    """See :func:`lift_det.layers.paste_masks`."""
    height, width = image_shape
    regions = sampled_regions(boxes, image_shape, masks.shape[-1], threshold).int()
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    grid = (triton.cdiv(width, _COLUMNS), triton.cdiv(height, _ROWS), len(masks))
    if pasted.numel():
        with torch.cuda.device_of(masks):
            _paste_kernel[grid](
                masks.contiguous(), boxes.contiguous(), regions, pasted.view(torch.uint8),
                masks.shape[-1], height, width, float(threshold),
                **_LAUNCH,
            )  # fmt: skip
    return pasted


def mask_to_rle(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    """See :func:`lift_det.layers.mask_to_rle`. One launch counts the changes, a second one writes their positions."""
    height, width = image_shape
    number = len(masks)
    regions = sampled_regions(boxes, image_shape, masks.shape[-1], threshold).int()
    masks, boxes = masks.contiguous(), boxes.contiguous()
    counts = torch.zeros(number, width, dtype=torch.int64, device=masks.device)
    changes = counts.new_empty(0)
    if height and counts.numel():
        grid = (triton.cdiv(width, _COLUMNS), number)
        sizes = (masks.shape[-1], height, width, float(threshold))
        with torch.cuda.device_of(masks):
            _changes_kernel[grid](masks, boxes, regions, counts, changes, *sizes, WRITE=False, **_LAUNCH)
            ends = counts.flatten().cumsum(0)
            changes = counts.new_empty(int(ends[-1]))
            _changes_kernel[grid](masks, boxes, regions, ends, changes, *sizes, WRITE=True, **_LAUNCH)
    return encode(changes, number, image_shape)
