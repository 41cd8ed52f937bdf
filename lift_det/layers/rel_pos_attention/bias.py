"""Bias of the scores from queries and relative positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_vectors(rel_pos: Tensor, q_length: int, k_length: int) -> Tensor:
    """Looks up the vector of each pair of positions along one axis.

    The shorter axis is stretched to the longer one, as in MViTv2 (arXiv 2112.01526, section 4.1).

    Args:
        rel_pos: (L, d), by distance; interpolated linearly unless L is ``2 · max(q_length, k_length) - 1``.
        q_length: number of query positions.
        k_length: number of key positions.

    Returns:
        (q_length, k_length, d)
    """
    distances = 2 * max(q_length, k_length) - 1
    if rel_pos.shape[0] != distances:
        # (1, d, L), in fp32 at least
        table = rel_pos.t().unsqueeze(0).to(torch.promote_types(rel_pos.dtype, torch.float32))
        rel_pos = F.interpolate(table, size=distances, mode="linear").squeeze(0).t().to(rel_pos.dtype)
    q_step, k_step = max(k_length / q_length, 1.0), max(q_length / k_length, 1.0)
    q_places = torch.arange(q_length, device=rel_pos.device)[:, None] * q_step
    k_places = torch.arange(k_length, device=rel_pos.device)[None, :] * k_step
    return rel_pos[(q_places - k_places + (k_length - 1) * k_step).long()]


def bias_terms(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Computes each query's bias for every row and for every column of the key grid.

    Args:
        q: (B, heads, q_h · q_w, d), not scaled.
        rows: (q_h, k_h, d), from :func:`relative_vectors`.
        columns: (q_w, k_w, d).

    Returns:
        (B, heads, q_h · q_w, k_h) and (B, heads, q_h · q_w, k_w), in q's dtype.
    """
    grid = q.unflatten(2, (rows.shape[0], columns.shape[0]))  # (B, heads, q_h, q_w, d)
    rel_h = torch.einsum("bnhwd,hkd->bnhwk", grid, rows)
    rel_w = torch.einsum("bnhwd,wkd->bnhwk", grid, columns)
    return rel_h.flatten(2, 3), rel_w.flatten(2, 3)


def bias_terms_backward(
    grad_rel_h: Tensor, grad_rel_w: Tensor, q: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`bias_terms` with respect to q, rows and columns."""
    size = rows.shape[0], columns.shape[0]
    grid, grad_rel_h, grad_rel_w = (x.unflatten(2, size) for x in (q, grad_rel_h, grad_rel_w))
    grad_grid = torch.einsum("bnhwk,hkd->bnhwd", grad_rel_h, rows) + torch.einsum(
        "bnhwk,wkd->bnhwd", grad_rel_w, columns
    )
    grad_rows = torch.einsum("bnhwk,bnhwd->hkd", grad_rel_h, grid)
    grad_columns = torch.einsum("bnhwk,bnhwd->wkd", grad_rel_w, grid)
    return grad_grid.flatten(2, 3), grad_rows, grad_columns


def full_bias(rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """(…, Nq, k_h), (…, Nq, k_w) → (…, Nq, k_h · k_w)."""
    return (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2)


def empty_token_major(like: Tensor) -> Tensor:
    """An empty (B, heads, N, d) with the memory layout (B, N, heads, d), which the output projection reads."""
    batch, heads, tokens, width = like.shape
    return like.new_empty(batch, tokens, heads, width).transpose(1, 2)
