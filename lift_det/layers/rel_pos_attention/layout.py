"""How the backends' results lie in memory."""

from torch import Tensor


def empty_beside_heads(like: Tensor) -> Tensor:
    """An empty (B, heads, N, d) laid out as (B, N, heads, d): a token's heads side by side, as a projection reads."""
    batch, heads, tokens, width = like.shape
    return like.new_empty(batch, tokens, heads, width).transpose(1, 2)
