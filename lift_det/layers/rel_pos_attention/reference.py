"""Reference implementation, which stores all scores."""

from __future__ import annotations

from torch import Tensor

from .bias import bias_terms, full_bias


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """softmax(scale · q·k + q·rows[query row, key row] + q·columns[query column, key column]) · v.

    Args:
        q: (B, heads, q_h · q_w, d).
        k, v: (B, heads, k_h · k_w, d).
        rows: (q_h, k_h, d), from :func:`.bias.relative_vectors`, in q's dtype.
        columns: (q_w, k_w, d).
        scale: of q·k alone.

    Returns:
        (B, heads, q_h · q_w, d)
    """
    scores = (q * scale) @ k.transpose(-2, -1) + full_bias(*bias_terms(q, rows, columns))
    return scores.softmax(dim=-1) @ v
