"""The formula, read from top to bottom; builds all scores. What the fast backends are measured against."""

from __future__ import annotations

from torch import Tensor

from .bias import bias_terms, full_bias


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """softmax(scale · q·k + q·rows[row of q, row of k] + q·columns[column of q, column of k]) · v.

    Args:
        q: (B, heads, q_h · q_w, d).
        k: (B, heads, k_h · k_w, d).
        v: as k.
        rows: (q_h, k_h, d), of :func:`.bias.relative_vectors`, in q's dtype.
        columns: (q_w, k_w, d).
        scale: of the products of q and k alone.

    Returns:
        (B, heads, q_h · q_w, d)
    """
    scores = (q * scale) @ k.transpose(-2, -1) + full_bias(*bias_terms(q, rows, columns))
    return scores.softmax(dim=-1) @ v
