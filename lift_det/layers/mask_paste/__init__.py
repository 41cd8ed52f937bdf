"""Pasting of instance masks into an image, and encoding of the result as COCO RLE."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..availability import has_triton
from . import pytorch

__all__ = ["mask_to_rle", "paste_masks"]

IMPLEMENTATIONS = ("auto", "torch", "triton")


@torch.no_grad()
def paste_masks(
    masks: Tensor,
    boxes: Any,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
    implementation: str = "auto",
) -> Tensor:
    """Resizes each mask to its box bilinearly and pastes it into an image, as detectron2's ``paste_masks_in_image``.

    On the CPU the result equals detectron2's bit by bit, except that a box outside of the image gives an empty mask and
    no error. On a GPU it equals detectron2's on a GPU, which extends masks past their box by half a cell, except for
    pixels whose value is within rounding of the threshold. Masks must not contain NaN.

    Args:
        masks: (N, M, M), probabilities; integers and bool are converted to float.
        boxes: (N, 4) or detectron2's ``Boxes``: x0, y0, x1, y1 in pixels, where the first pixel spans 0 to 1.
        image_shape: height and width in pixels.
        threshold: pixels with at least this value are in the mask. If negative, the values times 255 are returned.
        implementation: ``"torch"`` for any device, ``"triton"`` for CUDA tensors, or ``"auto"`` for ``"triton"`` if it
            supports the arguments and ``"torch"`` otherwise.

    Returns:
        (N, H, W) bool; uint8 if the threshold is negative or, as in detectron2, if there are no masks.

    Raises:
        ValueError: invalid shapes, or an unknown implementation.
        RuntimeError: the requested implementation cannot run with these arguments.
    """
    masks, boxes, image_shape = _check(masks, boxes, image_shape)
    if len(masks) == 0:
        return masks.new_empty((0, *image_shape), dtype=torch.uint8)
    return _backend(implementation, masks, threshold).paste_masks(masks, boxes, image_shape, threshold)


@torch.no_grad()
def mask_to_rle(
    masks: Tensor,
    boxes: Any,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
    implementation: str = "auto",
) -> list[dict[str, Any]]:
    """Encodes pasted masks as COCO RLE, without creating the image.

    The result equals ``pycocotools.mask.encode`` of each mask of :func:`paste_masks`.

    Args:
        masks, boxes, image_shape, implementation: as for :func:`paste_masks`.
        threshold: as for :func:`paste_masks`, at least 0.

    Returns:
        {"size": [height, width], "counts": bytes} for each mask. JSON needs ``counts.decode("ascii")``.

    Raises:
        ValueError: invalid shapes, a negative threshold, or an unknown implementation.
        RuntimeError: the requested implementation cannot run with these arguments.
    """
    masks, boxes, image_shape = _check(masks, boxes, image_shape)
    if not threshold >= 0:
        raise ValueError(f"RLE encodes binary masks: the threshold must be 0 or more, got {threshold}.")
    return _backend(implementation, masks, threshold).mask_to_rle(masks, boxes, image_shape, threshold)


def _check(masks: Tensor, boxes: Any, image_shape: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must be (N, M, M), got {tuple(masks.shape)}.")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must be ({len(masks)}, 4) for {len(masks)} masks, got {tuple(boxes.shape)}.")
    if boxes.device != masks.device:
        raise ValueError(f"masks and boxes must be on the same device, got {masks.device} and {boxes.device}.")
    height, width = (int(side) for side in image_shape)
    return masks if masks.is_floating_point() else masks.float(), boxes, (height, width)


def _backend(name: str, masks: Tensor, threshold: float) -> ModuleType:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{name}'.")
    if name == "torch" or (name == "auto" and not (masks.is_cuda and has_triton())):
        return pytorch
    if not has_triton():
        raise RuntimeError("implementation='triton' needs the package triton, which is not installed.")
    from . import triton  # imports the package

    problem = triton.unmet_condition(masks, threshold)
    if problem and name == "triton":
        raise RuntimeError(f"implementation='triton' {problem}.")
    return pytorch if problem else triton
