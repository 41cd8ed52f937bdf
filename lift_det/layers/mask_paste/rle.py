"""COCO's run-length strings for many masks at once, from the places where the masks change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encode(changes: Tensor, number: int, image_shape: tuple[int, int]) -> list[dict[str, Any]]:
    """The RLEs of masks which are given by their changes; on any device, without a loop over runs.

    Args:
        changes: (T,) int64, ascending: the pixels that differ from the one before them, a mask beginning after a
            False. Row y, column x of mask n is ``n * (H * W + 1) + x * H + y``; ``H * W`` itself, past the last pixel,
            must not occur.
        number: how many masks.
        image_shape: H and W.

    Returns:
        for each mask {"size": [H, W], "counts": bytes}, as pycocotools encodes it.
    """
    if number == 0:
        return []
    area = image_shape[0] * image_shape[1]
    masks = torch.arange(number, device=changes.device)
    ends = torch.searchsorted(changes, (masks + 1) * (area + 1))  # (N,) past each mask's changes
    changes_in = ends.diff(prepend=ends.new_zeros(1))
    owner = torch.repeat_interleave(masks, changes_in, output_size=len(changes))  # (T,)
    # A run ends at each change and at the end of its mask, so each mask before has one run more than changes.
    run_ends = changes.new_full((len(changes) + number,), area)
    run_ends.scatter_(0, torch.arange(len(changes), device=changes.device) + owner, changes - owner * (area + 1))
    first = ends - changes_in + masks  # (N,) each mask's first run
    runs = run_ends.diff(prepend=run_ends.new_zeros(1))
    runs[first] = run_ends[first]

    # From its fourth run on a mask stores the difference from the run two before.
    numbers = runs.clone()
    numbers[2:] -= runs[:-2]
    early = (first[:, None] + torch.arange(3, device=first.device)).clamp(max=len(runs) - 1)
    early = torch.minimum(early, (ends + masks)[:, None])  # a mask may have fewer than three
    numbers[early] = runs[early]
    text, lengths = _compress(numbers.int() if area < 1 << 31 else numbers)
    stops = lengths.cumsum(0)[ends + masks].tolist()  # after each mask's last run
    data = text.cpu().numpy().tobytes()
    size = list(image_shape)
    return [{"size": size.copy(), "counts": data[start:stop]} for start, stop in zip([0, *stops], stops, strict=False)]


def _compress(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The characters of (R,) integers one after the other, uint8, and how many each has; ``reference.compress`` says
    how."""
    characters, lengths = [], torch.zeros_like(numbers, dtype=torch.long)
    more = torch.ones_like(numbers, dtype=torch.bool)
    while bool(more.any()):
        lengths += more
        group = numbers & 0x1F
        numbers = numbers >> 5
        # what is left is 0 or -1, and the highest bit of the group says which
        more = numbers != -(group >> 4)
        characters.append((group + 48).add_(more, alpha=32).to(torch.uint8))
    starts = lengths.cumsum(0) - lengths
    # room for what the last numbers' missing characters write
    text = torch.empty(int(lengths.sum()) + len(characters), dtype=torch.uint8, device=numbers.device)
    # Last characters first: where a number has fewer, this writes into those after it, which are right in the end
    # because what is written wrongly belongs to an earlier character of theirs.
    for i in reversed(range(len(characters))):
        text.scatter_(0, starts + i, characters[i])
    return text, lengths
