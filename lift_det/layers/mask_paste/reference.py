"""Pasting and encoding by their definitions: every mask sampled on the whole image, every run counted one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import grid_coordinates, sampled_regions


def paste_masks(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> Tensor:
    """See :func:`lift_det.layers.paste_masks`. Takes 13 bytes for each pixel of the image at a time."""
    height, width = image_shape
    ys, xs = torch.arange(height, device=masks.device), torch.arange(width, device=masks.device)
    dtype = torch.bool if threshold >= 0 else torch.uint8
    pasted = torch.zeros(len(masks), height, width, dtype=dtype, device=masks.device)
    regions = sampled_regions(boxes, image_shape, masks.shape[-1], threshold)
    for mask, box, region, out in zip(masks, boxes, regions, pasted, strict=True):
        gx = grid_coordinates(xs, box[None, 0], box[None, 2])
        gy = grid_coordinates(ys, box[None, 1], box[None, 3])
        grid = torch.stack([gx.expand(height, width), gy[:, None].expand(height, width)], dim=2)  # (H, W, 2)
        values = F.grid_sample(mask[None, None], grid[None].to(mask.dtype), align_corners=False)[0, 0]  # (H, W)
        x0, y0, x1, y1 = region
        inside = ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))
        out.copy_(values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)).mul_(inside)
    return pasted


def mask_to_rle(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    """See :func:`lift_det.layers.mask_to_rle`."""
    pasted = paste_masks(masks, boxes, image_shape, threshold)
    return [{"size": list(image_shape), "counts": compress(run_lengths(mask))} for mask in pasted]


def run_lengths(mask: Tensor) -> list[int]:
    """Lengths of the runs of a bool (H, W) mask read column by column: of zeros (perhaps none), of ones, of zeros, …"""
    runs, value, length = [], False, 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


def compress(runs: list[int]) -> bytes:
    """COCO's string for run lengths (``rleToString`` in its maskApi.c).

    From the fourth on, a length is stored as its difference from the one two before. A number is cut into groups of
    five bits, the lowest first, as many as its sign needs to show in the last one's highest bit; each becomes the
    character 48 + group, + 32 if another follows.
    """
    text = bytearray()
    for i, run in enumerate(runs):
        number = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            group = number & 0x1F
            number >>= 5
            more = number != (-1 if group & 0x10 else 0)
            text.append(48 + group + (0x20 if more else 0))
    return bytes(text)
