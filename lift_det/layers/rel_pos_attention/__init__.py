"""Attention with decomposed relative positions, as in ViTDet, without storing all scores."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..availability import has_triton
from . import reference, sdpa
from .bias import relative_vectors

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")


def rel_pos_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    q_size: tuple[int, int],
    k_size: tuple[int, int],
    scale: float,
    implementation: str = "auto",
) -> Tensor:
    """Multi-head attention on a grid, with scores biased by the distance of query and key in rows and in columns.

    The score is ``scale · q·k + q·rel_pos_h[Δrow] + q·rel_pos_w[Δcolumn]``: the decomposed relative positions of MViTv2
    (arXiv 2112.01526, section 4.1), which ViTDet uses. Differentiable in the first five arguments. Under autocast, q, k
    and v are cast as by :func:`torch.nn.functional.scaled_dot_product_attention`.

    Args:
        q: (B, heads, q_h · q_w, d), row by row, not scaled. Any strides.
        k: (B, heads, k_h · k_w, d).
        v: (B, heads, k_h · k_w, d).
        rel_pos_h: (L, d), one vector for each distance between rows, from -(L - 1) / 2 to (L - 1) / 2; interpolated if
            the grid needs another length.
        rel_pos_w: the same for columns.
        q_size: (q_h, q_w).
        k_size: (k_h, k_w).
        scale: usually d**-0.5.
        implementation: ``"reference"`` stores all scores, ``"sdpa"`` uses PyTorch's fused attention on any device,
            ``"triton"`` is a kernel for CUDA tensors, and ``"auto"`` is ``"triton"`` if it supports the arguments and
            ``"sdpa"`` otherwise.

    Returns:
        (B, heads, q_h · q_w, d)

    Raises:
        ValueError: shapes, dtypes or devices do not match, or the implementation is unknown.
        RuntimeError: the requested implementation cannot run with these arguments.
    """
    _check(q, k, v, rel_pos_h, rel_pos_w, q_size, k_size)
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    backend = _backend(implementation, q)
    rows = relative_vectors(rel_pos_h, q_size[0], k_size[0]).to(q.dtype)
    columns = relative_vectors(rel_pos_w, q_size[1], k_size[1]).to(q.dtype)
    return backend.attention(q, k, v, rows, columns, scale)


def _backend(name: str, q: Tensor) -> ModuleType:
    """Returns the module of an implementation. docs/speed.md has the measurements behind "auto"."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{name}'.")
    if name == "reference":
        return reference
    if name == "sdpa" or (name == "auto" and not (q.is_cuda and has_triton())):
        return sdpa
    if not has_triton():
        raise RuntimeError(
            "implementation='triton' needs the package triton, which is not installed: pip install triton, or use "
            "implementation='sdpa'."
        )
    from . import triton  # imports the package

    problem = triton.unmet_condition(q)
    if problem and name == "triton":
        raise RuntimeError(f"implementation='triton' {problem}.")
    return sdpa if problem else triton


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    q_size: tuple[int, int],
    k_size: tuple[int, int],
) -> None:
    batch, heads, _, width = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    q_shape = (batch, heads, q_size[0] * q_size[1], width)
    k_shape = (batch, heads, k_size[0] * k_size[1], width)
    if q.shape != q_shape or k.shape != k_shape or v.shape != k_shape:
        raise ValueError(
            f"q must be (B, heads, {q_shape[2]}, d), k and v (B, heads, {k_shape[2]}, d) for grids of {q_size} and "
            f"{k_size}, got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    for table in (rel_pos_h, rel_pos_w):
        if table.dim() != 2 or table.shape[1] != width:
            raise ValueError(f"Tables of relative positions must be (L, {width}), got {tuple(table.shape)}.")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point() and q.device == k.device == v.device):
        raise ValueError(
            "q, k and v must have the same floating-point dtype and device, got "
            + ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        )
