"""Attention over :func:`torch.nn.functional.scaled_dot_product_attention`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias import bias_terms, bias_terms_backward, empty_token_major, full_bias

# Scores per block on the CPU: 8 MiB in fp32, which stay in the cache. docs/speed.md has the times for other sizes.
_BLOCK_SCORES = 2**21


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """See :func:`.reference.attention`."""
    form = blocked_attention if q.device.type == "cpu" else masked_attention
    return form(q, k, v, rows, columns, scale)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Passes the bias as an attention mask of Nq × Nk values per head."""
    bias = full_bias(*bias_terms(q, rows, columns))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


# A custom operator, because on the CPU fused attention gives masks no gradient, and because torch.compile and export
# then see one node instead of a loop. For the backward pass it keeps nothing larger than q.
@torch.library.custom_op("lift_det::rel_pos_attention_blocked", mutates_args=(), device_types="cpu")
def blocked_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Passes the bias as a mask for one block of heads or of query rows at a time."""
    out = empty_token_major(q)
    queries_per_block = _queries_per_block(q, k)
    with torch.autocast("cpu", enabled=False):
        rel_h, rel_w = _in_sum_dtype(*bias_terms(q, rows, columns))
        for heads in _head_groups(q, k):
            keys, values = _packed(k[heads]), _packed(v[heads])
            for r in _slices(q.shape[2], queries_per_block):
                part = *heads, r
                queries = _packed(q[part])
                bias = full_bias(rel_h[part], rel_w[part]).flatten(0, 1).to(q.dtype)
                if q.dtype == torch.bfloat16:  # twice as fast as the fused attention, which is no faster than in fp32
                    result = _probabilities(queries, keys, bias, scale) @ values
                else:  # four dimensions, because it builds all scores for three
                    result = F.scaled_dot_product_attention(
                        queries[None], keys[None], values[None], attn_mask=bias[None], scale=scale
                    )[0]
                out[part] = result.view(q[part].shape)
    return out


def _probabilities(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(heads, rows, Nk), in place of the bias."""
    scores = bias.baddbmm_(q, k.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


@torch.library.custom_op("lift_det::rel_pos_attention_blocked_backward", mutates_args=(), device_types="cpu")
def _blocked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, out: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, rows and columns. Recomputes the probabilities block by block.

    With P the probabilities and dP = grad · vᵀ, the scores' gradient is P · (dP - Σ grad · out) (FlashAttention, arXiv
    2205.14135, appendix B.2).
    """
    grad_q, grad_k, grad_v = (empty_token_major(x) for x in (q, k, v))
    mean = (grad * out).sum(dim=-1, keepdim=True)  # (B, heads, Nq, 1)
    k_size = rows.shape[1], columns.shape[1]
    queries_per_block = _queries_per_block(q, k)
    with torch.autocast("cpu", enabled=False):
        rel_h, rel_w = _in_sum_dtype(*bias_terms(q, rows, columns))
        grad_rel_h, grad_rel_w = torch.empty_like(rel_h), torch.empty_like(rel_w)
        for heads in _head_groups(q, k):
            keys, values = _packed(k[heads]), _packed(v[heads])  # (heads, Nk, d)
            sum_k, sum_v = (torch.zeros_like(x) for x in _in_sum_dtype(keys, values))
            for r in _slices(q.shape[2], queries_per_block):
                part = *heads, r
                queries, grad_part = _packed(q[part]), _packed(grad[part])  # (heads, rows, d)
                bias = full_bias(rel_h[part], rel_w[part]).flatten(0, 1).to(q.dtype)
                probabilities = _probabilities(queries, keys, bias, scale)  # (heads, rows, Nk)
                sum_v += probabilities.transpose(1, 2) @ grad_part
                grad_scores = grad_part @ values.transpose(1, 2)
                grad_scores.sub_(_packed(mean[part])).mul_(probabilities)
                grad_q[part] = (grad_scores @ keys).mul_(scale).view(q[part].shape)
                sum_k += grad_scores.transpose(1, 2) @ queries
                on_grid = grad_scores.view(*rel_h[part].shape[:3], *k_size)
                grad_rel_h[part] = on_grid.sum(dim=-1)
                grad_rel_w[part] = on_grid.sum(dim=-2)
            grad_k[heads] = sum_k.mul_(scale).view(k[heads].shape).to(k.dtype)
            grad_v[heads] = sum_v.view(v[heads].shape).to(v.dtype)
        grad_q_bias, grad_rows, grad_columns = bias_terms_backward(
            grad_rel_h.to(q.dtype), grad_rel_w.to(q.dtype), q, rows, columns
        )
    return grad_q.add_(grad_q_bias), grad_k, grad_v, grad_rows, grad_columns


@blocked_attention.register_fake
def _(q, k, v, rows, columns, scale):
    return empty_token_major(q)


@_blocked_backward.register_fake
def _(grad, q, k, v, rows, columns, out, scale):
    outputs = (empty_token_major(x) for x in (q, k, v))
    return (*outputs, rows.new_empty(rows.shape), columns.new_empty(columns.shape))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_blocked_backward(grad, *ctx.saved_tensors, ctx.scale), None)


blocked_attention.register_autograd(_backward, setup_context=_setup_context)


def _in_sum_dtype(*tensors: Tensor) -> list[Tensor]:
    """Converts to fp32 at least. Half precision would round each block's sum, and sums short rows four times slower."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _queries_per_block(q: Tensor, k: Tensor) -> int:
    return max(1, min(q.shape[2], _BLOCK_SCORES // k.shape[2]))


def _head_groups(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts (B, heads) into groups whose scores fit a block: all heads of some images, some of one, or a single head."""
    batch, heads, queries, _ = q.shape
    heads_per_block = max(1, _BLOCK_SCORES // (queries * k.shape[2]))
    for b in _slices(batch, max(1, heads_per_block // heads)):
        for h in _slices(heads, min(heads_per_block, heads)):
            yield b, h


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _packed(x: Tensor) -> Tensor:
    """(B, heads, N, d) → contiguous (B · heads, N, d)."""
    return x.flatten(0, 1).contiguous()
