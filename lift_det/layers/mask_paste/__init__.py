"""Instance masks pasted into their image, or encoded as COCO's RLE without an image."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..availability import has_triton
from . import boxes as _boxes
from . import reference as _reference

__all__ = ["mask_to_rle", "paste_masks"]

IMPLEMENTATIONS = ("auto", "reference", "boxes", "triton")


@torch.no_grad()
def paste_masks(
    masks: Tensor,
    boxes: Any,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
    implementation: str = "auto",
) -> Tensor:
    """detectron2's ``paste_masks_in_image``: resizes each mask to its box, bilinearly, and puts it into the image.

    On the CPU the result is equal to detectron2's bit by bit. A box that lies outside of the image, for which
    detectron2 may raise an error there, gives an empty mask. Nothing is promised for NaN.

    On a GPU detectron2's own differs from its CPU's: it pastes up to half a mask's cell past the box, against at most a
    pixel on the CPU, and so does this; and where a value comes within rounding of the threshold, either may be True.
    "triton" also does not round coordinates to the type of masks in half precision, as detectron2 does.

    Args:
        masks: (N, M, M), probabilities. Integers and bool count as 0 and 1.
        boxes: (N, 4) or detectron2's ``Boxes``: x0, y0, x1, y1 in pixels, x to the right, y down, the first pixel
            spanning 0 to 1.
        image_shape: height and width in pixels.
        threshold: a pixel is in the mask if its value is at least this. Below zero, the values come back instead,
            times 255.
        implementation: "reference" samples the whole image, "boxes" inside of the boxes, "triton" is a kernel for CUDA
            which needs no memory but the result's; "auto" takes "triton" where it can and else "boxes".

    Returns:
        (N, H, W) bool; uint8 for a negative threshold or, as with detectron2, for no masks at all.

    Raises:
        ValueError: the arguments do not fit each other, or there is no such implementation.
        RuntimeError: the implementation asked for cannot run here or with these arguments, and why.
    """
    masks, boxes, image_shape = _checked(masks, boxes, image_shape)
    if len(masks) == 0:
        return masks.new_empty((0, *image_shape), dtype=torch.uint8)
    backend = _backend(implementation, masks, threshold)
    return backend.paste_masks(masks, boxes, image_shape, threshold)


@torch.no_grad()
def mask_to_rle(
    masks: Tensor,
    boxes: Any,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
    implementation: str = "auto",
) -> list[dict[str, Any]]:
    """The COCO RLEs of pasted masks: ``pycocotools.mask.encode`` of each of :func:`paste_masks`, byte by byte.

    The image is never built: see :mod:`lift_det.layers.mask_paste.crossings`. On the CPU the bytes are those of
    detectron2's paste; on a GPU they may differ as :func:`paste_masks` may.

    Args:
        masks, boxes, image_shape: as for :func:`paste_masks`.
        threshold: as for :func:`paste_masks`, at least 0.
        implementation: as for :func:`paste_masks`.

    Returns:
        for each mask {"size": [height, width], "counts": bytes}. JSON needs ``counts.decode("ascii")``.

    Raises:
        ValueError: the arguments do not fit each other, or there is no such implementation.
        RuntimeError: the implementation asked for cannot run here or with these arguments, and why.
    """
    masks, boxes, image_shape = _checked(masks, boxes, image_shape)
    if not threshold >= 0:
        raise ValueError(f"An RLE needs a mask of two values, so a threshold of 0 or more; got {threshold}.")
    backend = _backend(implementation, masks, threshold)
    return backend.mask_to_rle(masks, boxes, image_shape, threshold)


def _checked(masks: Tensor, boxes: Any, image_shape: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks: expected (N, M, M), got {tuple(masks.shape)}.")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes: expected ({len(masks)}, 4) for as many masks, got {tuple(boxes.shape)}.")
    if boxes.device != masks.device:
        raise ValueError(f"masks are on {masks.device} and boxes on {boxes.device}; they have to be on one device.")
    height, width = (int(side) for side in image_shape)
    return masks if masks.is_floating_point() else masks.float(), boxes, (height, width)


def _backend(name: str, masks: Tensor, threshold: float) -> ModuleType:
    """The module of that name, or for "auto" the best one for these masks."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is '{name}'; it can be one of {', '.join(IMPLEMENTATIONS)}.")
    if name == "reference":
        return _reference
    if name == "boxes" or (name == "auto" and not (masks.is_cuda and has_triton())):
        return _boxes
    if not has_triton():
        raise RuntimeError("implementation='triton' needs the package triton, which is not installed.")
    from . import triton  # imports the package

    unmet = triton.unmet_condition(masks, threshold)
    if unmet and name == "triton":
        raise RuntimeError(f"implementation='triton' {unmet}.")
    return _boxes if unmet else triton
