"""COCO run-length encoding from the positions where masks change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from torch import Tensor


def encode(changes: Tensor, number: int, image_shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Encodes masks that are given by their changes.

    Args:
        changes: int64, ascending: positions of the pixels that differ from the previous pixel of their mask, column by
            column. A mask starts after a False pixel. Row y, column x of mask n is ``n * (H * W + 1) + x * H + y``.
        number: number of masks.
        image_shape: H and W.

    Returns:
        {"size": [H, W], "counts": bytes} for each mask, as from ``pycocotools.mask.encode``.
    """
    height, width = image_shape
    area = height * width
    positions = changes.cpu().numpy()
    starts = np.arange(number) * (area + 1)
    parts = np.split(positions, np.searchsorted(positions, starts[1:]))
    runs = [np.diff(part - start, prepend=0, append=area) for part, start in zip(parts, starts, strict=False)]
    uncompressed = [{"size": [height, width], "counts": counts} for counts in runs]
    return mask_util.frPyObjects(uncompressed, height, width) if uncompressed else []
