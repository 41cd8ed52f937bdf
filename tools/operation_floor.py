"""How long a model would take at the rates at which this machine multiplies: the floor of benchmark_model.py.

Operations are those of matrix products and convolutions, a multiplication and an addition counting two, as
torch.utils.flop_counter has them; normalisations, softmax, interpolation, ROIAlign, NMS and the like count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmarking import Job, WorkerError, alternate, workers
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

KINDS = PRODUCTS, CONVOLUTIONS = "products", "convolutions"
_PYRAMID_CHANNELS = 256


def count_operations(job: Job) -> dict[str, int]:
    """Runs a job on the CPU and counts its operations: of products, 1×1 convolutions among them, and of convolutions.

    What detectron2 multiplies of its windows' padding counts, and so does what a backward pass multiplies again. Not
    for a GPU: the counter does not know the Triton kernels.
    """
    _register_formulas()
    pointwise = []
    aten = torch.ops.aten
    formulas = {
        aten.convolution: _noting_pointwise(flop_registry[aten.convolution], 1, pointwise),
        aten.convolution_backward: _noting_pointwise(flop_registry[aten.convolution_backward], 2, pointwise),
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        job()
    by_operator = counter.get_flop_counts()["Global"]
    convolutions = sum(by_operator.get(operator, 0) for operator in formulas) - sum(pointwise)
    return {PRODUCTS: counter.get_total_flops() - convolutions, CONVOLUTIONS: convolutions}


def measure_rates(
    token_map: tuple[int, int, int], side: int, dtype: torch.dtype, device: str, repeats: int, threads: int
) -> dict[str, float]:
    """Operations a second: of a ViT's linear layers, and of the convolution at ViTDet's finest level.

    Linear layers are measured as such and as 1×1 convolutions, which torch may leave to another library; the quicker
    counts.

    Args:
        token_map: images, side of the map of tokens, channels.
        side: of the pyramid's finest map.
    """
    images, tokens_side, width = token_map
    builds = {
        "linear": partial(_linear_layers, token_map, False, dtype, device),
        "pointwise": partial(_linear_layers, token_map, True, dtype, device),
        "convolution": partial(_convolution, side, dtype, device),
    }
    with workers(builds, threads) as running:
        results = alternate(running, repeats, device)
    for result in results.values():
        if isinstance(result, WorkerError):
            raise result
    linear = min(results["linear"].median, results["pointwise"].median)
    return {
        PRODUCTS: 2 * images * tokens_side**2 * 12 * width**2 / linear,  # 3 + 1 + 4 + 4 times width² for each token
        CONVOLUTIONS: 2 * side**2 * (3 * _PYRAMID_CHANNELS) ** 2 / results["convolution"].median,
    }


def floor_seconds(operations: Mapping[str, int], rates: Mapping[str, float]) -> float:
    return sum(operations[name] / rates[name] for name in operations)


def _linear_layers(token_map: tuple[int, int, int], pointwise: bool, dtype: torch.dtype, device: str) -> Job:
    """qkv, the projection, and the two layers of an MLP four times as wide, of a map (N, h, w, C)."""
    images, side, width = token_map
    x, hidden = (torch.randn(images, side, side, size, device=device, dtype=dtype) for size in (width, 4 * width))
    sizes = ((x, 3 * width), (x, width), (x, 4 * width), (hidden, width))
    layers = [(source, torch.randn(size, source.shape[-1], device=device, dtype=dtype)) for source, size in sizes]

    def run() -> None:
        for source, weight in layers:
            if pointwise:
                F.conv2d(source.permute(0, 3, 1, 2), weight[:, :, None, None])
            else:
                F.linear(source, weight)

    return run


def _convolution(side: int, dtype: torch.dtype, device: str) -> Job:
    x = torch.randn(1, _PYRAMID_CHANNELS, side, side, device=device, dtype=dtype)
    weight = torch.randn(_PYRAMID_CHANNELS, _PYRAMID_CHANNELS, 3, 3, device=device, dtype=dtype)
    return lambda: F.conv2d(x, weight, padding=1)


def _noting_pointwise(formula: Callable[..., int], weight_at: int, noted: list[int]) -> Callable[..., int]:
    """A formula of torch's for a convolution, which also notes what it counts for a 1×1 one."""

    def counted(*args: Any, **kwargs: Any) -> int:
        operations = formula(*args, **kwargs)
        if args[weight_at].shape[2:].numel() == 1:
            noted.append(operations)
        return operations

    counted._get_raw = True  # so that the counter gives it tensors, not their shapes
    return counted


def _register_formulas() -> None:
    """For the attentions on the CPU that torch's counter does not know: it would count nothing."""
    ours = getattr(torch.ops, "lift_det", None)
    formulas = [
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", _fused_attention),
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", _fused_attention_backward),
        (ours, "rel_pos_attention_blocked", _rel_pos_attention),
        (ours, "rel_pos_attention_blocked_backward", _rel_pos_attention_backward),
    ]
    for namespace, name, formula in formulas:
        operator = getattr(namespace, name, None)  # ours are there only once lift_det is imported
        if operator is not None and operator not in flop_registry:
            register_flop_formula(operator)(formula)


# Arguments of these are the operators', with shapes in place of tensors.


def _fused_attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _fused_attention_backward(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _rel_pos_attention(
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    return sdpa_flop_count(q, k, v) + _bias_terms(q, rows, columns)


def _rel_pos_attention_backward(
    grad: Sequence[int],
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """The bias again, and then its gradients by queries and by tables."""
    return sdpa_backward_flop_count(grad, q, k, v) + 3 * _bias_terms(q, rows, columns)


def _bias_terms(q: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> int:
    """(B, heads, Nq, d) by the vectors of k_h rows and k_w columns."""
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * width * (rows[1] + columns[1])
