"""Two exact forms over :func:`torch.nn.functional.scaled_dot_product_attention`, and the CPU's way in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias import bias_terms, bias_terms_backward, full_bias
from .layout import empty_beside_heads

# Scores that a block on the CPU may hold: 8 MiB in fp32, which stay in the cache while they are made, exponentiated and
# multiplied. docs/speed.md has the times for other sizes.
_BLOCK_SCORES = 2**21
# Keys up to which a GPU gets the bias as a mask: of 32×32 tokens it takes 2 MiB a head in half precision.
_MASK_KEYS = 32 * 32


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """As :func:`.reference.attention`, by the form that suits the device and the number of keys."""
    if q.device.type == "cpu":
        return blocked_attention(q, k, v, rows, columns, scale)
    form = masked_attention if k.shape[2] <= _MASK_KEYS else widened_attention
    return form(q, k, v, rows, columns, scale)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """The bias as a mask: Nq × Nk numbers a head, and no work but adding them."""
    bias = full_bias(*bias_terms(q, rows, columns))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def widened_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """The bias as part of the product, in memory linear in the tokens.

    Both terms are products with one-hot vectors: [scale · q, rel_h, rel_w] · [k, onehot(row), onehot(column)] is the
    biased score, so that any fused attention computes it, with d + k_h + k_w wide heads.
    """
    k_h, k_w, width = rows.shape[1], columns.shape[1], v.shape[-1]
    padding = (8 - (width + k_h + k_w) % 8) % 8  # fused kernels ask for multiples of 8
    on_row = torch.eye(k_h, dtype=q.dtype, device=q.device).repeat_interleave(k_w, dim=0)  # (Nk, k_h)
    on_column = torch.eye(k_w, dtype=q.dtype, device=q.device).repeat(k_h, 1)  # (Nk, k_w)
    places = torch.cat([on_row, on_column], dim=1).expand(*k.shape[:-1], k_h + k_w)
    q = F.pad(torch.cat([q * scale, *bias_terms(q, rows, columns)], dim=-1), (0, padding))
    k = F.pad(torch.cat([k, places], dim=-1), (0, padding))
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, k_h + k_w + padding)), scale=1.0)
    return out[..., :width]


# An operator of its own, because a fused attention gives a mask no gradient on the CPU, and because torch.compile and
# export are to see one node and not the loop over blocks. It keeps nothing for the backward that is larger than q.
@torch.library.custom_op("lift_det::rel_pos_attention_blocked", mutates_args=(), device_types="cpu")
def blocked_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """As :func:`.reference.attention`, with the bias as a mask for a block of heads or of query rows at a time."""
    out = empty_beside_heads(q)
    # torch's fused attention multiplies bf16 no faster than fp32, and its plain products do twice as fast
    attend = _product_by_product if q.dtype == torch.bfloat16 else _fused
    queries_at_once = _queries_at_once(q, k)
    with torch.autocast("cpu", enabled=False):
        rel_h, rel_w = _in_sum_dtype(*bias_terms(q, rows, columns))
        for heads in _groups_of_heads(q, k):
            keys, values = _packed(k[heads]), _packed(v[heads])
            for r in _pieces(q.shape[2], queries_at_once):
                part = *heads, r
                bias = full_bias(rel_h[part], rel_w[part]).flatten(0, 1).to(q.dtype)
                out[part] = attend(_packed(q[part]), keys, values, bias, scale).view(q[part].shape)
    return out


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(heads, rows, d), (heads, Nk, d), (heads, Nk, d), (heads, rows, Nk) → (heads, rows, d)."""
    # four dimensions, without which it builds the scores
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None], scale=scale)[0]


def _product_by_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """As :func:`_fused`, in place of the bias."""
    return _probabilities(q, k, bias, scale) @ v


def _probabilities(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    scores = bias.baddbmm_(q, k.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


@blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    return empty_beside_heads(q)


@torch.library.custom_op("lift_det::rel_pos_attention_blocked_backward", mutates_args=(), device_types="cpu")
def _blocked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, out: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, rows and columns: the probabilities are made again, a block at a time.

    With P the probabilities and dP = grad · vᵀ, the scores' gradient is P · (dP - Σ grad · out): FlashAttention's
    (Dao et al., arXiv 2205.14135, appendix B.2).
    """
    grad_q, grad_k, grad_v = (empty_beside_heads(x) for x in (q, k, v))
    mean = (grad * out).sum(dim=-1, keepdim=True)  # (B, heads, Nq, 1)
    k_size = rows.shape[1], columns.shape[1]
    queries_at_once = _queries_at_once(q, k)
    with torch.autocast("cpu", enabled=False):
        rel_h, rel_w = _in_sum_dtype(*bias_terms(q, rows, columns))
        grad_rel_h, grad_rel_w = torch.empty_like(rel_h), torch.empty_like(rel_w)
        for heads in _groups_of_heads(q, k):
            keys, values = _packed(k[heads]), _packed(v[heads])  # (heads, Nk, d)
            sum_k, sum_v = (torch.zeros_like(x) for x in _in_sum_dtype(keys, values))
            for r in _pieces(q.shape[2], queries_at_once):
                part = *heads, r
                queries, above = _packed(q[part]), _packed(grad[part])  # (heads, rows, d)
                bias = full_bias(rel_h[part], rel_w[part]).flatten(0, 1).to(q.dtype)
                probabilities = _probabilities(queries, keys, bias, scale)  # (heads, rows, Nk)
                sum_v += probabilities.transpose(1, 2) @ above
                grad_scores = above @ values.transpose(1, 2)
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


@_blocked_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, out: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    beside = [empty_beside_heads(x) for x in (q, k, v)]
    return (*beside, rows.new_empty(rows.shape), columns.new_empty(columns.shape))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_blocked_backward(grad, *ctx.saved_tensors, ctx.scale), None)


blocked_attention.register_autograd(_backward, setup_context=_setup_context)


def _in_sum_dtype(*tensors: Tensor) -> list[Tensor]:
    """In fp32 at least: half precision rounds a sum at each block, and adds up short rows in four times the time."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _queries_at_once(q: Tensor, k: Tensor) -> int:
    """How many queries of one head go into a block of _BLOCK_SCORES scores."""
    return max(1, min(q.shape[2], _BLOCK_SCORES // k.shape[2]))


def _groups_of_heads(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts (B, heads) into groups whose scores fit a block: all heads of some images, some of one, or a single head."""
    batch, heads, queries, _ = q.shape
    at_once = max(1, _BLOCK_SCORES // (queries * k.shape[2]))
    for b in _pieces(batch, max(1, at_once // heads)):
        for h in _pieces(heads, min(at_once, heads)):
            yield b, h


def _pieces(length: int, at_once: int) -> Iterator[slice]:
    return (slice(start, start + at_once) for start in range(0, length, at_once))


def _packed(x: Tensor) -> Tensor:
    """(B, heads, N, d) → (B · heads, N, d), each head's numbers side by side, as products like them."""
    return x.flatten(0, 1).contiguous()
