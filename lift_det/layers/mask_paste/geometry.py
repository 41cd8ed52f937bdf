"""Sampled regions and sampling coordinates of pasted masks, as in detectron2."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_regions(boxes: Tensor, image_shape: tuple[int, int], size: int, threshold: float) -> Tensor:
    """Returns the part of the image outside of which a pasted mask is False.

    detectron2 samples a mask up to one pixel outside of its box on the CPU, and in the whole image on a GPU, where
    interpolation extends the mask by half a cell. This function returns the part for the device of ``boxes``.

    Args:
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        image_shape: height and width in pixels.
        size: side M of the masks in cells.
        threshold: as for :func:`lift_det.layers.paste_masks`.

    Returns:
        (N, 4) int64: x0, y0 (inclusive) and x1, y1 (exclusive), inside of the image, with x0 <= x1 and y0 <= y1.
    """
    height, width = image_shape
    corner = torch.tensor([width, height], device=boxes.device)
    low, high = boxes[:, :2], boxes[:, 2:]
    if boxes.device.type != "cpu":
        if threshold <= 0:  # zeros are inside of the mask
            return torch.cat([torch.zeros_like(corner), corner]).expand(len(boxes), 4)
        half_cell = (high - low).abs() / (2 * size)
        low, high = torch.minimum(low, high) - half_cell, torch.maximum(low, high) + half_cell
    # Clamped before the conversion to integers, because a box can exceed their range.
    low = torch.minimum((low.floor() - 1).clamp(min=0).double(), corner)
    high = torch.maximum(torch.minimum((high.ceil() + 1).double(), corner), low)
    return torch.cat([low, high], dim=1).long()


def grid_coordinates(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Converts pixel indices to coordinates for ``grid_sample``, with the roundings of detectron2.

    Args:
        pixels: indices along one axis, of any shape.
        low, high: the box's sides along that axis, broadcastable to ``pixels``; -1 and 1 in the result.
    """
    return (pixels.to(torch.float32) + 0.5 - low) / (high - low) * 2 - 1
