#!/usr/bin/env python
"""Measures time and peak memory of the ops of lift_det.layers, for each implementation and for detectron2's.

    python tools/benchmark_ops.py                                     # all ops, shapes and implementations, fp32
    python tools/benchmark_ops.py --ops mask_to_rle --repeats 15
    python tools/benchmark_ops.py --ops rel_pos_attention --grids 25x14x14 --heads 12x64 --dtypes fp32 bf16

- rel_pos_attention: from (B, h · w, 3 · heads · d) to (B, h · w, heads · d), compared with detectron2's Attention
  without its linear layers. The pass "both" is forward and backward; "forward" runs without gradients.
- paste_masks is compared with detectron2's paste_masks_in_image; mask_to_rle with that followed by pycocotools' encode,
  as in detectron2's COCOEvaluator. Masks are random blobs with boxes of 10 to 300 pixels in an image of 800 × 1200.

Each row is measured in its own process. The rows of a case alternate after a warm-up. A repetition makes as many calls
as fit into 50 ms. "inputs alone" is the peak memory before the first call.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from benchmarking import Job, alternate, gigabytes, print_machine, print_row, workers
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.backbone.vit import Attention
from torch import Tensor, nn

from lift_det.layers import mask_to_rle, paste_masks, rel_pos_attention

STOCK = "detectron2"
IMPLEMENTATIONS = {
    "rel_pos_attention": ("reference", "sdpa", "triton"),
    "paste_masks": ("torch", "triton"),
    "mask_to_rle": ("torch", "triton"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADER = ("op", "shape", "dtype", "pass", "implementation")
HEADER += ("median", "min – max", "of detectron2's", "peak", "inputs alone")


class Case(NamedTuple):
    """Rows that are compared with each other. ``build`` makes the job of an implementation."""

    op: str
    shape: str
    dtype: str
    passes: str
    build: Callable[[str], Job]


def attention_job(
    batch: int, grid: tuple[int, int], heads: int, width: int, dtype: str, both: bool, device: str, implementation: str
) -> Job:
    """Returns a function that computes attention for (batch, h · w, 3 · heads · width)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * std).to(device, DTYPES[dtype]).requires_grad_(both)

    qkv = normal(batch, grid[0] * grid[1], 3 * heads * width, std=1.0)
    tables = [normal(2 * side - 1, width, std=0.2) for side in grid]

    def ours(qkv: Tensor) -> Tensor:
        # (B, N, 3 · heads · d) → three of (B, heads, N, d)
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return rel_pos_attention(q, k, v, *tables, grid, grid, width**-0.5, implementation).transpose(1, 2).flatten(2)

    attention = _detectron2s_attention(grid, heads, tables) if implementation == STOCK else ours
    if not both:
        return torch.no_grad()(lambda: attention(qkv))
    grad = normal(batch, grid[0] * grid[1], heads * width, std=1.0).detach()
    return lambda: torch.autograd.grad(attention(qkv), (qkv, *tables), grad)


def _detectron2s_attention(grid: tuple[int, int], heads: int, tables: list[Tensor]) -> Callable[[Tensor], Tensor]:
    attention = Attention(heads * tables[0].shape[1], heads, use_rel_pos=True, input_size=grid)
    attention.qkv = attention.proj = nn.Identity()
    del attention.rel_pos_h, attention.rel_pos_w  # a parameter cannot be replaced by a tensor
    attention.rel_pos_h, attention.rel_pos_w = tables
    return lambda qkv: attention(qkv.unflatten(1, grid)).flatten(1, 2)


def mask_job(
    op: str,
    number: int,
    size: int,
    device: str,
    implementation: str,
    image_shape: tuple[int, int] = (800, 1200),
    max_box: float = 300,
) -> Job:
    """Returns a function that pastes or encodes ``number`` masks of (size, size)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(number, 1, 7, 7, generator=generator)
    masks = (4 * F.interpolate(noise, size=(size, size), mode="bicubic")[:, 0]).sigmoid()
    sides = 10 + torch.rand(number, 2, generator=generator) * (max_box - 10)
    corners = torch.rand(number, 2, generator=generator) * (torch.tensor(image_shape[::-1]) - sides)
    masks, boxes = masks.to(device), torch.cat([corners, corners + sides], dim=1).to(device)
    if implementation != STOCK:
        function = paste_masks if op == "paste_masks" else mask_to_rle
        return lambda: function(masks, boxes, image_shape, implementation=implementation)
    if op == "paste_masks":
        return lambda: paste_masks_in_image(masks, boxes, image_shape)
    return lambda: _encode(paste_masks_in_image(masks, boxes, image_shape).cpu())


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """Encodes masks as detectron2's instances_to_coco_json does."""
    return [mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in masks]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yields all combinations of the options."""
    if "rel_pos_attention" in options.ops:
        combinations = itertools.product(options.heads, options.grids, options.dtypes, options.passes)
        for (heads, width), (batch, *grid), dtype, passes in combinations:
            shape = f"{batch} × {grid[0]}×{grid[1]}, {heads} heads × {width}"
            both = passes == "both"
            build = partial(attention_job, batch, tuple(grid), heads, width, dtype, both, options.device)
            yield Case("rel_pos_attention", shape, dtype, passes, build)
    number, size = options.masks
    for op in ("paste_masks", "mask_to_rle"):
        if op in options.ops:
            build = partial(mask_job, op, number, size, options.device)
            yield Case(op, f"{number} × {size}×{size}", "fp32", "forward", build)


def measure(case: Case, options: argparse.Namespace) -> None:
    """Prints the rows of one case: detectron2's, and the requested implementations or all that can run."""
    names = IMPLEMENTATIONS[case.op]
    if options.implementations:
        names = [name for name in names if name in options.implementations]
    elif not (options.device.startswith("cuda") and importlib.util.find_spec("triton")):
        names = [name for name in names if name != "triton"]
    with workers({name: partial(case.build, name) for name in (STOCK, *names)}, options.threads) as running:
        results = alternate(running, options.repeats, options.device)
    stock = results[STOCK]
    for name, result in results.items():
        row = (*case[:4], name)
        if isinstance(result, Exception):
            message = f"{type(result).__name__}: {result}".splitlines()[0]
            print_row(*row, message, *[""] * 4)
            continue
        ratio = "" if isinstance(stock, Exception) else f"{result.median / stock.median:.3f}"
        print_row(*row, *result.describe("ms"), ratio, gigabytes(result.peak), gigabytes(result.built))


def _numbers(count: int, text: str) -> tuple[int, ...]:
    """Parses "25x14x14" as (25, 14, 14)."""
    parts = text.split("x")
    if len(parts) != count or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected {count} positive integers joined by x, got '{text}'")
    return tuple(map(int, parts))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ops", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    names = ("reference", "sdpa", "torch", "triton")
    add("--implementations", nargs="+", choices=names, help="in addition to detectron2's (default: all that can run)")
    grids = [(25, 14, 14), (9, 14, 14), (1, 32, 32), (1, 64, 64)]
    text = "batch size and token grid (default: windows and global attention at 1024 and 512 pixels)"
    add("--grids", nargs="+", type=partial(_numbers, 3), metavar="BxHxW", default=grids, help=text)
    text = "number of heads and their width (default: 12x64 16x80, as in ViT-B and ViT-H)"
    add("--heads", nargs="+", type=partial(_numbers, 2), metavar="NxD", default=[(12, 64), (16, 80)], help=text)
    add("--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="for attention")
    add("--passes", nargs="+", choices=("forward", "both"), default=["forward", "both"], help="for attention")
    add(
        "--masks",
        type=partial(_numbers, 2),
        metavar="NxM",
        default=(100, 28),
        help="number and side of the masks (default: 100x28)",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=int, default=9)
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    print_machine(options.device, options.threads, options.repeats)
    print_row(*HEADER, header=True)
    for case in cases(options):
        measure(case, options)


if __name__ == "__main__":
    main()
