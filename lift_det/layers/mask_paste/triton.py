"""Pasting and encoding on a GPU: kernels that sample and threshold the pixels and keep only bits, or where they change.

Samples are computed as :func:`torch.nn.functional.grid_sample` does it, in float32, but products and sums are not fused
where it may fuse them: a pixel whose value comes within rounding of the threshold may differ from detectron2's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import sampled_regions
from .rle import encode

# Columns and rows of the image that a program looks at at a time.
_COLUMNS, _ROWS = 32, 32
_WARPS = 4
# Changes are counted by one program and found by another, and each looks at a pixel twice: all have to see the same, so
# nothing is left to how the compiler fuses products and sums.
_LAUNCH = dict(COLUMNS=_COLUMNS, ROWS=_ROWS, num_warps=_WARPS, enable_fp_fusion=False)


@triton.jit
def _place(pixel, low, high, size):
    """Pixels of the image, int32, in cells of the mask: 0 is the first one's centre. Pixels far from the box, and all
    of a box without extent, come to lie outside of the mask."""
    place = tl.div_rn(pixel.to(tl.float32) + 0.5 - low, high - low) * 2 - 1
    place = ((place + 1) * size - 1) * 0.5
    place = tl.where(place == place, place, -2.0)
    return tl.minimum(tl.maximum(place, -2.0), size + 1.0)


@triton.jit
def _cell(mask_ptr, x, y, size):
    """Values of the mask, zero outside of it."""
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    return tl.load(mask_ptr + y * size + x, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _bits(mask_ptr, box_ptr, x, y, left, top, right, bottom, size, threshold):
    """Whether pixels (x, y) of the image are in the pasted mask; they are not outside of the region."""
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
    """Programs (columns, rows, mask) of a uint8 (N, H, W) image that is zero before."""
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
    """Programs (columns, mask) which find, column by column, the pixels unlike the one before them.

    The pixel before a column's first is the last of the column to its left. With ``WRITE`` false, counts them into
    ``ends`` (N, W). With ``WRITE`` true, ``ends`` holds those counts summed up over all that come before and the
    column's own, and the positions, n * (H * W + 1) + x * H + y, go into ``out``, ending there.
    """
    n = tl.program_id(1).to(tl.int64)
    left, top = tl.load(regions_ptr + n * 4), tl.load(regions_ptr + n * 4 + 1)
    right, bottom = tl.load(regions_ptr + n * 4 + 2), tl.load(regions_ptr + n * 4 + 3)
    mask_ptr, box_ptr = masks_ptr + n * size * size, boxes_ptr + n * 4
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ends = ends_ptr + n * width + columns
    count = tl.zeros([COLUMNS], dtype=tl.int64)
    if WRITE:  # from the end of the column before; the very first one starts at zero
        first = (n == 0) & (columns == 0)
        count = tl.load(ends - 1, mask=(columns < width) & (first == 0), other=0)
    # One column more than the region, and one row, because there it ends; and the image's first row, where a column
    # ends that reaches the image's last. It stands for the row above the region.
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
    """Why these kernels do not take the arguments, or an empty string."""
    if masks.device.type != "cuda" and isinstance(_paste_kernel, triton.JITFunction):
        return f"needs tensors on a CUDA device; these are on {masks.device}"
    if masks.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"takes masks of float32, float16 or bfloat16, not {masks.dtype}"
    if threshold < 0:
        return f"needs a threshold of 0 or more, not {threshold}"
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
    """See :func:`lift_det.layers.mask_to_rle`. Counts the changes, makes room for them, and finds them again: what
    leaves the GPU is the strings."""
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


def compilation_specs() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """What tools/compile_kernels.py compiles: each kernel for each type of masks, as it is launched for 28 × 28."""
    tile = {"COLUMNS": _COLUMNS, "ROWS": _ROWS}
    sizes = {"size": "i32", "height": "i32", "width": "i32", "threshold": "fp32"}
    for dtype in ("fp32", "fp16", "bf16"):
        inputs = {"masks_ptr": f"*{dtype}:16", "boxes_ptr": "*fp32:16", "regions_ptr": "*i32:16"}
        signature = {**inputs, "out_ptr": "*u8:16", **sizes}
        yield f"mask paste, {dtype}", _paste_kernel, signature, tile, _WARPS, 3
        signature = {**inputs, "ends_ptr": "*i64:16", "out_ptr": "*i64:16", **sizes}
        for write in (False, True):
            name = f"mask changes, {'found' if write else 'counted'}, {dtype}"
            yield name, _changes_kernel, signature, {"WRITE": write, **tile}, _WARPS, 3
