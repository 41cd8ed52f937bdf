"""Masks and boxes to paste, and the results of detectron2 and pycocotools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor
from torch.nn import functional as F


class Case(NamedTuple):
    masks: Tensor  # (N, M, M)
    boxes: Tensor  # (N, 4)
    image_shape: tuple[int, int]
    threshold: float


def expected_paste(case: Case) -> Tensor:
    """detectron2's paste, mask by mask, because it raises for boxes outside of the image."""
    pasted = torch.zeros(len(case.masks), *case.image_shape, dtype=torch.bool)
    height, width = case.image_shape
    for mask, box, out in zip(case.masks, case.boxes, pasted, strict=True):
        try:
            out.copy_(paste_masks_in_image(mask[None], box[None], case.image_shape, case.threshold)[0])
        except RuntimeError:
            x0, y0, x1, y1 = box.tolist()
            assert x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0
    return pasted


def expected_rles(pasted: Tensor) -> list[dict[str, Any]]:
    return [mask_util.encode(np.asfortranarray(mask.numpy())) for mask in pasted]


def smooth_masks(number: int, size: int, gain: float, generator: torch.Generator) -> Tensor:
    """Blurred noise through a sigmoid; nearly binary for a high gain."""
    noise = torch.rand(number, 1, size + 8, size + 8, generator=generator)
    return ((F.avg_pool2d(noise, 9, 1)[:, 0] - 0.5) * gain).sigmoid()


def rounding_decides(case: Case) -> bool:
    """Whether many samples are at the threshold, where another order of float32 operations gives other bits."""
    return case.threshold == 0 or float(((case.masks - case.threshold).abs() < 1e-3).float().mean()) > 0.05


def random_cases(number: int, seed: int = 0) -> Iterator[Case]:
    """``number`` masks in cases of many sizes, thresholds, kinds of masks and degenerate boxes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(77, 101), (200, 151), (33, 501), (64, 64), (1, 1), (301, 1), (1, 97)]
    for index in range(-(-number // 16)):
        n = min(16, number - 16 * index)
        size = (28, 14, 28, 7, 28, 56, 2, 28, 1)[index % 9]
        shape = shapes[index % len(shapes)]
        masks = (
            torch.rand(n, size, size, generator=generator),
            smooth_masks(n, size, 20, generator),
            smooth_masks(n, size, 100, generator),
            smooth_masks(n, size, 0.01, generator),  # near 0.5, as from an untrained head
            (smooth_masks(n, size, 20, generator) > 0.5).float(),
            torch.full((n, size, size), 0.5),
            torch.ones(n, size, size),
        )[int(torch.randint(7, (1,), generator=generator))]
        sides = torch.tensor([shape[1], shape[0]])
        extent, shift, centre = torch.rand(3, n, 2, generator=generator)
        extent = extent * sides * (0.1, 1.0, 3.0)[index % 3] + shift * 10
        centre = centre * sides * 1.4 - sides * 0.2
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
        if index % 3 == 0:  # whole numbers, and some of one pixel
            boxes = boxes.round()
            boxes[::4, 2:] = boxes[::4, :2] + 1
        elif index % 3 == 1:  # some without area, some with sides on pixel centres
            boxes[::3, 2], boxes[1::3, 3] = boxes[::3, 0], boxes[1::3, 1]
            boxes[::4] = boxes[::4].round() + 0.5
        else:  # clipped to the image, as in detectron2, and some huge
            boxes = torch.minimum(boxes.clamp(min=0), sides.repeat(2))
            boxes[::3] = (boxes[::3] - 30) * 1000
        threshold = (0.5, 0.5, 0.3, 0.7, 0.0, 1.0)[int(torch.randint(6, (1,), generator=generator))]
        yield Case(masks, boxes, shape, threshold)
