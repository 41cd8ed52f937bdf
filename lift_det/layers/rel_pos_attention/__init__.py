"""Attention with decomposed relative positions, as ViTDet's ViT has it, without its matrix of all scores."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..availability import has_triton
from . import reference, sdpa
from .bias import bias_terms, relative_vectors

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
    """Multi-head attention on a grid, its scores biased by how far query and key lie apart in rows and in columns.

    The score of a query and a key is ``scale · q·k + q·rel_pos_h[Δrow] + q·rel_pos_w[Δcolumn]``, the decomposed
    relative positions of MViTv2 (arXiv 2112.01526, section 4.1), which ViTDet takes over. Differentiable in the first
    five arguments. Under autocast q, k and v are cast as :func:`torch.nn.functional.scaled_dot_product_attention`
    casts them.

    Args:
        q: (B, heads, q_h · q_w, d), not scaled; rows of the grid one after the other. Any strides.
        k: (B, heads, k_h · k_w, d).
        v: as k.
        rel_pos_h: (L, d), a vector for each distance between rows, from -(L - 1) / 2 to (L - 1) / 2; interpolated if
            the grid asks for another length than L.
        rel_pos_w: the same for columns.
        q_size: (q_h, q_w).
        k_size: (k_h, k_w).
        scale: usually d**-0.5.
        implementation: ``"reference"`` builds all scores; ``"sdpa"`` runs on any device over torch's own fused
            attention; ``"triton"`` is a kernel for NVIDIA GPUs. ``"auto"``: triton for CUDA tensors in fp16, bf16 or
            fp32 where Triton is installed, else sdpa.

    Returns:
        (B, heads, q_h · q_w, d)

    Raises:
        ValueError: shapes or dtypes that do not belong together, or another implementation's name.
        RuntimeError: an implementation asked for by its name that cannot run here, and why.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is '{implementation}'; it can be one of {', '.join(IMPLEMENTATIONS)}.")
    _check(q, k, v, rel_pos_h, rel_pos_w, q_size, k_size)
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    name = _choose(q) if implementation == "auto" else implementation
    rows = relative_vectors(rel_pos_h, q_size[0], k_size[0]).to(q.dtype)
    columns = relative_vectors(rel_pos_w, q_size[1], k_size[1]).to(q.dtype)
    if name == "triton":
        return _triton_kernels().attention(q, k, v, *bias_terms(q, rows, columns), k_size, scale)
    backend = reference if name == "reference" else sdpa
    return backend.attention(q, k, v, rows, columns, scale)


def _choose(q: Tensor) -> str:
    """The rule of "auto"; docs/speed.md has the measurements behind it."""
    kernel_fits = q.dtype in (torch.float16, torch.bfloat16, torch.float32) and q.shape[-1] in range(8, 129, 8)
    return "triton" if q.device.type == "cuda" and kernel_fits and has_triton() else "sdpa"


def _triton_kernels() -> ModuleType:
    if not has_triton():
        raise RuntimeError(
            "implementation='triton' needs the package triton, which is not installed: pip install triton "
            "(torch's builds for CUDA bring it), or implementation='sdpa'."
        )
    from . import triton  # imports the package

    return triton


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
    expected = (
        (batch, heads, q_size[0] * q_size[1], width),
        (batch, heads, k_size[0] * k_size[1], width),
    )
    if tuple(q.shape) != expected[0] or tuple(k.shape) != expected[1] or k.shape != v.shape:
        raise ValueError(
            f"Queries on a grid of {q_size[0]}×{q_size[1]} and keys on one of {k_size[0]}×{k_size[1]} are (B, heads, "
            f"{q_size[0] * q_size[1]}, d) and (B, heads, {k_size[0] * k_size[1]}, d); got q {tuple(q.shape)}, "
            f"k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    for table in (rel_pos_h, rel_pos_w):
        if table.dim() != 2 or table.shape[1] != width:
            raise ValueError(
                f"A table of relative positions is (L, {width}) for heads of {width} channels; "
                f"got {tuple(table.shape)}."
            )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k and v have one floating dtype; got {q.dtype}, {k.dtype} and {v.dtype}.")
