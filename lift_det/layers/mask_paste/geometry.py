"""Where in the image a mask is sampled, and at which coordinates: detectron2's own conventions."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_regions(boxes: Tensor, image_shape: tuple[int, int], size: int, threshold: float) -> Tensor:
    """The part of the image outside of which a pasted mask is False whatever its values are.

    detectron2 samples a mask on the CPU only within a pixel of its box, and on a GPU in the whole image. The difference
    shows: past its box a mask falls to zero over half a cell, which may be more than a pixel. Both are kept.

    Args:
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        image_shape: height and width.
        size: the side M of the masks.
        threshold: as for pasting.

    Returns:
        (N, 4) int64: x0, y0 (included) and x1, y1 (excluded), 0 ≤ x0 ≤ x1 ≤ width, and likewise for y.
    """
    height, width = image_shape
    corner = torch.tensor([width, height], device=boxes.device)
    low, high = boxes[:, :2], boxes[:, 2:]
    if boxes.device.type != "cpu":
        if threshold <= 0:  # zeros count as inside then
            return torch.cat([torch.zeros_like(corner), corner]).expand(len(boxes), 4)
        half_cell = (high - low).abs() / (2 * size)
        low, high = torch.minimum(low, high) - half_cell, torch.maximum(low, high) + half_cell
    # Clamped before they become integers, because a box can be larger than those.
    low = torch.minimum((low.floor() - 1).clamp(min=0).double(), corner)
    high = torch.maximum(torch.minimum((high.ceil() + 1).double(), corner), low)
    return torch.cat([low, high], dim=1).long()


def grid_coordinates(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What :func:`torch.nn.functional.grid_sample` is given for pixels: a box spans -1 to 1, pixels have their centres
    at halves. Rounded as detectron2 rounds it, so each operation stays as it is.

    Args:
        pixels: indices along one axis, of any shape.
        low, high: the box's sides along that axis, of a shape that broadcasts with ``pixels``.
    """
    return (pixels.to(torch.float32) + 0.5 - low) / (high - low) * 2 - 1
