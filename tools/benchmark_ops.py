#!/usr/bin/env python
"""Time and peak memory of each op of lift_det.layers, each implementation beside detectron2's own.

    python tools/benchmark_ops.py                                     # every op, shape and implementation, fp32
    python tools/benchmark_ops.py --ops mask_to_rle --repeats 15
    python tools/benchmark_ops.py --ops rel_pos_attention --grids 25x14x14 --heads 12x64 --dtypes fp32 bf16

- rel_pos_attention: from the projected (B, h · w, 3 · heads · d) to (B, h · w, heads · d), as it lies between a block's
  two linear layers; beside detectron2's Attention without those. "both" is forward and backward together, with the
  gradients of queries, keys, values and both tables; "forward" keeps nothing for a backward.
- paste_masks beside detectron2's paste_masks_in_image; mask_to_rle beside that and pycocotools' encode, as detectron2's
  COCOEvaluator calls it. Smooth random masks; boxes inside the image, their sides 10 pixels to --max-box.

Each row has a process of its own. The rows of a case alternate, one repetition each (as many calls as take 50 ms),
after a warm-up. "inputs alone" is the peak of memory before the first call.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from benchmarking import (
    Job,
    WorkerError,
    alternate,
    describe_machine,
    gigabytes,
    memory_kind,
    print_header,
    print_row,
    workers,
)
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.backbone.vit import Attention
from torch import Tensor, nn

from lift_det.layers import mask_to_rle, paste_masks, rel_pos_attention
from lift_det.layers.rel_pos_attention import sdpa
from lift_det.layers.rel_pos_attention.bias import relative_vectors

STOCK = "detectron2"
FORMS = {"masked": sdpa.masked_attention, "widened": sdpa.widened_attention, "blocked": sdpa.blocked_attention}
"""The forms among which the implementation sdpa chooses."""
IMPLEMENTATIONS = {
    "rel_pos_attention": ("reference", "sdpa", *FORMS, "triton"),
    "paste_masks": ("reference", "boxes", "triton"),
    "mask_to_rle": ("reference", "boxes", "triton"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABELS = ("op", "shape", "dtype", "pass", "implementation")
MEASURED = ("median", "min – max", "of detectron2's", "peak", "inputs alone")


class Case(NamedTuple):
    """The rows that are compared with each other: what to build, by the implementation's name."""

    op: str
    shape: str
    dtype: str
    passes: str
    build: Callable[[str], Job]


def attention_job(
    batch: int, grid: tuple[int, int], heads: int, width: int, dtype: str, both: bool, device: str, implementation: str
) -> Job:
    """One call of attention over (batch, h · w, heads · width)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * std).to(device, DTYPES[dtype]).requires_grad_(both)

    qkv = normal(batch, grid[0] * grid[1], 3 * heads * width, std=1.0)
    tables = [normal(2 * side - 1, width, std=0.2) for side in grid]
    upstream = _detectron2s_attention if implementation == STOCK else partial(_our_attention, implementation)
    attention = upstream(grid, heads, tables)
    if not both:
        return torch.no_grad()(lambda: attention(qkv))
    grad = normal(batch, grid[0] * grid[1], heads * width, std=1.0).detach()
    return lambda: torch.autograd.grad(attention(qkv), (qkv, *tables), grad)


def _detectron2s_attention(grid: tuple[int, int], heads: int, tables: list[Tensor]) -> Callable[[Tensor], Tensor]:
    width = tables[0].shape[1]
    attention = Attention(heads * width, heads, use_rel_pos=True, input_size=grid)
    attention.qkv = attention.proj = nn.Identity()
    del attention.rel_pos_h, attention.rel_pos_w  # parameters, which cannot be replaced by the tensors of the case
    attention.rel_pos_h, attention.rel_pos_w = tables
    return lambda qkv: attention(qkv.unflatten(1, grid)).flatten(1, 2)


def _our_attention(
    implementation: str, grid: tuple[int, int], heads: int, tables: list[Tensor]
) -> Callable[[Tensor], Tensor]:
    def run(qkv: Tensor) -> Tensor:
        # (B, N, 3 · heads · d) → three of (B, heads, N, d), which nothing copies
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = q.shape[-1] ** -0.5
        if implementation in FORMS:
            places = [relative_vectors(table, side, side) for table, side in zip(tables, grid, strict=True)]
            out = FORMS[implementation](q, k, v, *places, scale)
        else:
            out = rel_pos_attention(q, k, v, *tables, grid, grid, scale, implementation)
        return out.transpose(1, 2).flatten(2)

    return run


def mask_job(
    op: str, number: int, size: int, image_shape: tuple[int, int], max_box: float, device: str, implementation: str
) -> Job:
    """Pasting or encoding of ``number`` masks (size, size), the same ones for each implementation."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(number, 1, 7, 7, generator=generator)
    masks = (4 * F.interpolate(noise, size=(size, size), mode="bicubic")[:, 0]).sigmoid()
    image_sides = torch.tensor(image_shape[::-1])
    sides = torch.minimum(10 + torch.rand(number, 2, generator=generator) * (max_box - 10), image_sides)
    corners = torch.rand(number, 2, generator=generator) * (image_sides - sides)
    masks, boxes = masks.to(device), torch.cat([corners, corners + sides], dim=1).to(device)
    if implementation != STOCK:
        function = paste_masks if op == "paste_masks" else mask_to_rle
        return lambda: function(masks, boxes, image_shape, implementation=implementation)
    if op == "paste_masks":
        return lambda: paste_masks_in_image(masks, boxes, image_shape)
    return lambda: _encode(paste_masks_in_image(masks, boxes, image_shape).cpu())


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """As detectron2's instances_to_coco_json encodes them."""
    return [mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in masks]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every combination that the options ask for."""
    if "rel_pos_attention" in options.ops:
        for heads, width in options.heads:
            for batch, *grid in options.grids:
                for dtype in options.dtypes:
                    for passes in options.passes:
                        shape = f"{batch} × {grid[0]}×{grid[1]}, {heads} heads × {width}"
                        build = partial(
                            attention_job, batch, tuple(grid), heads, width, dtype, passes == "both", options.device
                        )
                        yield Case("rel_pos_attention", shape, dtype, passes, build)
    for op in ("paste_masks", "mask_to_rle"):
        if op in options.ops:
            number, size = options.masks
            shape = f"{number} × {size}×{size}, boxes to {options.max_box:g} in {options.image[0]}×{options.image[1]}"
            build = partial(mask_job, op, number, size, options.image, options.max_box, options.device)
            yield Case(op, shape, "fp32", "forward", build)


def implementations(case: Case, options: argparse.Namespace) -> list[str]:
    """detectron2's, and those of ours that were asked for, or that can run on the device."""
    names = IMPLEMENTATIONS[case.op]
    if options.implementations:
        return [STOCK, *(name for name in names if name in options.implementations)]
    on_gpu = options.device.startswith("cuda")
    cannot = {"blocked"} if on_gpu else {"triton"}
    if not importlib.util.find_spec("triton"):
        cannot.add("triton")
    if case.op == "mask_to_rle":
        cannot.add("reference")  # counts runs pixel by pixel in Python: a minute for 100 masks
    return [STOCK, *(name for name in names if name not in cannot)]


def measure(case: Case, options: argparse.Namespace) -> None:
    """Print the rows of one case."""
    names = implementations(case, options)
    with workers({name: partial(case.build, name) for name in names}, options.threads) as running:
        results = alternate(running, options.repeats, options.device)
    stock = results[STOCK]
    for name, result in results.items():
        row = (*case[:4], name)
        if isinstance(result, WorkerError):
            print_row(*row, str(result).splitlines()[-1], *[""] * (len(MEASURED) - 1))
            continue
        ratio = "" if isinstance(stock, WorkerError) else f"{result.median / stock.median:.3f}"
        print_row(*row, *result.describe("ms"), ratio, f"{gigabytes(result.peak)} GB", f"{gigabytes(result.built)} GB")


def _numbers(count: int, text: str) -> tuple[int, ...]:
    """ "25x14x14" → (25, 14, 14)."""
    parts = text.split("x")
    if len(parts) != count or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not {count} whole numbers joined by x")
    return tuple(map(int, parts))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(name for of_op in IMPLEMENTATIONS.values() for name in of_op))
    parser.add_argument("--ops", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    parser.add_argument(
        "--implementations", nargs="+", choices=names, help="beside detectron2's (default: what the device can run)"
    )
    parser.add_argument(
        "--grids",
        nargs="+",
        type=partial(_numbers, 3),
        metavar="BxHxW",
        default=[(25, 14, 14), (9, 14, 14), (1, 32, 32), (1, 64, 64)],
        help="batch (of windows) and grid of tokens (default: the windows and whole maps of 1024 and 512 pixels)",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        type=partial(_numbers, 2),
        metavar="NxD",
        default=[(12, 64), (16, 80)],
        help="heads and their width (default: 12x64 16x80, those of ViT-B and ViT-H)",
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="of attention")
    parser.add_argument("--passes", nargs="+", choices=("forward", "both"), default=["forward", "both"])
    parser.add_argument("--masks", type=partial(_numbers, 2), metavar="NxM", default=(100, 28), help="default: 100x28")
    parser.add_argument(
        "--image", type=partial(_numbers, 2), metavar="HxW", default=(800, 1200), help="default: 800x1200"
    )
    parser.add_argument("--max-box", type=float, default=300, help="longest side of a mask's box, in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that torch uses on the CPU")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    print(describe_machine(options.device, options.threads))
    print(f"- {options.repeats} repetitions of each, alternating; {memory_kind(options.device)}\n")
    print_header(*LABELS, *MEASURED)
    for case in cases(options):
        measure(case, options)


if __name__ == "__main__":
    main()
