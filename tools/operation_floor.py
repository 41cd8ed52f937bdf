"""A lower bound of a pass's time: its counted operations, divided by rates measured on this machine.

Operations are those of matrix products (linear layers, attention, 1×1 convolutions) and of larger convolutions; a
multiplication and an addition are two. Norms, softmax, interpolation, ROIAlign and NMS are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from benchmarking import Job, Measured, Worker, seconds_per_call, warm_up
from tabulate import tabulate
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

KINDS = PRODUCTS, CONVOLUTIONS = "products", "convolutions"
HEADER = ("side", "dtype", "products, GFLOP", "GFLOP/s", "convolutions, GFLOP", "GFLOP/s", "floor", "median")
HEADER += ("floor / median",)
# Of lift_det's operators: position of q, number of products with the keys, and with the relative positions.
_ATTENTION = {
    "rel_pos_attention_blocked": (0, 2, 1),
    "rel_pos_attention_blocked_backward": (1, 5, 3),
    "rel_pos_attention_triton": (0, 2, 0),
    "rel_pos_attention_triton_backward": (1, 7, 0),
}


def floor_table(
    running: Mapping[str, Worker], results: Mapping[str, Measured], dtypes: Mapping[str, str], device: str
) -> str:
    """A Markdown table of the sides. A rate is the best that the sides of one dtype reach in their largest layers."""
    counts = {name: worker.ask(count_operations) for name, worker in running.items()}
    rates: dict[tuple[str, str], float] = {}
    for name, (_, largest) in counts.items():
        for kind, call in largest.items():
            rate = running[name].ask(_measure_rate, call, device, len(results[name].seconds))
            rates[dtypes[name], kind] = max(rate, rates.get((dtypes[name], kind), 0.0))
    rows = []
    for name, (total, _) in counts.items():
        rate, median = {kind: rates[dtypes[name], kind] for kind in KINDS}, results[name].median
        floor = sum(total[kind] / rate[kind] for kind in KINDS)
        cells = [f"{number / 1e9:#.4g}" for kind in KINDS for number in (total[kind], rate[kind])]
        rows.append((name, dtypes[name], *cells, f"{floor:#.4g} s", f"{median:#.4g} s", f"{floor / median:.3f}"))
    return tabulate(rows, HEADER, tablefmt="github", disable_numparse=True)


def count_operations(job: Job) -> tuple[dict[str, int], dict[str, tuple[Any, ...]]]:
    """Runs a job. Returns its operations of each kind, and the largest call: operations, name, and meta arguments."""
    total, largest = dict.fromkeys(KINDS, 0), {}

    def count(name: str, formula: Callable[..., int], *args: Any, **kwargs: Any) -> int:
        operations = formula(*args, **kwargs)
        weight = {"convolution": 1, "convolution_backward": 2}.get(name)
        kind = PRODUCTS if weight is None or args[weight].shape[2:].numel() == 1 else CONVOLUTIONS
        total[kind] += operations
        if name in ("mm", "addmm", "convolution") and (kind not in largest or operations > largest[kind][0]):
            largest[kind] = operations, name, tree_map_only(Tensor, lambda x: x.to("meta"), args)
        return operations

    flash, aten = "_scaled_dot_product_flash_attention", torch.ops.aten
    formulas = dict(flop_registry)
    for suffix in ("", "_backward"):  # torch has no formulas for its fused attention on the CPU
        formulas[getattr(aten, f"{flash}_for_cpu{suffix}")] = flop_registry[getattr(aten, flash + suffix)]
    for name, numbers in _ATTENTION.items():
        if hasattr(torch.ops.lift_det, name):  # lift_det is not imported in the stock side's process
            formulas[getattr(torch.ops.lift_det, name)] = partial(_attention_operations, *numbers)
    counters = {operator: partial(count, operator.__name__, formula) for operator, formula in formulas.items()}
    for counter in counters.values():
        counter._get_raw = True  # FlopCounterMode then passes tensors instead of shapes
    with FlopCounterMode(display=False, custom_mapping=counters):
        job()
    return total, largest


def _attention_operations(first: int, with_keys: int, with_positions: int, *args: Any, **_: Any) -> int:
    q, k, _, rows, columns = tree_leaves(args)[first : first + 5]
    return 2 * q.numel() * (with_keys * k.shape[2] + with_positions * (rows.shape[1] + columns.shape[1]))


def _measure_rate(_job: Job, call: tuple[Any, ...], device: str, repeats: int) -> float:
    operations, name, args = call
    job = partial(getattr(torch, name), *tree_map_only(Tensor, lambda x: torch.randn_like(x, device=device), args))
    calls = warm_up(job, device)
    return operations / min(seconds_per_call(job, device, calls) for _ in range(repeats))
