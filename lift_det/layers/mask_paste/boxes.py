"""Pasting and encoding that never leave the masks' boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .crossings import find_changes
from .geometry import grid_coordinates, sampled_regions
from .rle import encode

# Masks are encoded together while their boxes' areas sum up to this: it bounds the memory, and what fits into the
# processor's cache is quicker.
_PIXELS_AT_ONCE = 1 << 21


def paste_masks(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float) -> Tensor:
    """See :func:`lift_det.layers.paste_masks`. Samples each mask in its box and writes there."""
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
    rles = []
    for part in _parts(areas.tolist()):
        changes = find_changes(masks[part], boxes[part], regions[part], image_shape, threshold)
        rles += encode(changes, part.stop - part.start, image_shape)
    return rles


def _parts(areas: list[int]) -> list[slice]:
    """Consecutive masks whose areas sum up to ``_PIXELS_AT_ONCE`` at most, or that are alone."""
    parts, start, total = [], 0, 0
    for i, area in enumerate(areas):
        if i > start and total + area > _PIXELS_AT_ONCE:
            parts.append(slice(start, i))
            start, total = i, 0
        total += area
    return [*parts, slice(start, len(areas))] if areas else []
