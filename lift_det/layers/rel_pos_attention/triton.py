"""Attention with decomposed relative positions as a flash attention kernel, forward and backward.

The score of query m and the key in row r and column c of the key grid is (MViTv2, arXiv 2112.01526, equation 4)

    s[m, (r, c)] = scale * q[m]·k[(r, c)] + rel_h[m, r] + rel_w[m, c]

The online softmax is FlashAttention's (Dao, arXiv 2307.08691). A tile of keys is a rectangle of the grid with ROWS rows
and W columns, BLOCK_N = ROWS * W keys.

- The tile of ``rel_w`` is the same for all tiles of a column and stays in registers; ``rel_h`` is one value for each
  query and grid row. There are no gathers and no products with one-hot vectors.
- The gradient of ``rel_w`` is a running sum in registers, that of ``rel_h`` a sum over a tile's columns that is written
  once. There are no atomics, so a configuration gives deterministic results.
- Keys outside of the grid get a bias of minus infinity; loads of q, k and v are clamped to the last row.

The kernels run on CUDA tensors, or on CPU tensors if TRITON_INTERPRET=1 was set before triton was imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bias import bias_terms, empty_token_major

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernels run in Triton's interpreter; decided when this file is imported."""

_INTERPRETED = tl.constexpr(INTERPRETED)
_PRECISION = tl.constexpr("ieee")  # of fp32 products: no TF32, and therefore no tensor cores
# exp2 is one instruction, exp is two: scores and biases are multiplied by log2(e).
_LOG2E = tl.constexpr(1.4426950408889634)


class Inputs(NamedTuple):
    """Arguments of the operator; the last dimension of every tensor is contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    rel_h: Tensor
    rel_w: Tensor
    k_size: tuple[int, int]
    scale: float


class Config(NamedTuple):
    """Queries and keys per tile, warps, and stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# The first call tries all configurations of a kernel. None of them spills registers at head dimension 64
# (tools/compile_kernels.py), and all but Hopper's fit the 99 KB of shared memory of consumer GPUs. On Hopper, products
# read operands from shared memory, which leaves registers for larger tiles.
_CONFIGS = {
    ("forward", "half"): (Config(128, 64, 8, 3), Config(64, 64, 4, 3), Config(64, 32, 4, 3)),
    ("forward", "half on Hopper"): (Config(128, 128, 8, 2), Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
    ("forward", "float"): (Config(64, 32, 8, 2), Config(32, 32, 4, 2)),
    ("backward_queries", "half"): (Config(64, 32, 4, 2), Config(128, 32, 8, 2)),
    ("backward_queries", "half on Hopper"): (Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 32, 4, 2)),
    ("backward_queries", "float"): (Config(32, 32, 8, 2), Config(32, 16, 4, 1)),
    ("backward_keys", "half"): (Config(32, 64, 4, 2), Config(32, 128, 8, 2)),
    ("backward_keys", "half on Hopper"): (Config(64, 128, 8, 2), Config(64, 64, 4, 2), Config(32, 64, 4, 2)),
    ("backward_keys", "float"): (Config(32, 32, 8, 2), Config(16, 32, 4, 2)),
}


def configurations(launch: str, dtype: torch.dtype, architecture: int) -> tuple[Config, ...]:
    """Configurations of a launch function ("forward", …) for a dtype of q, k and v and a GPU (80 for sm_80)."""
    if dtype == torch.float32:
        return _CONFIGS[launch, "float"]
    return _CONFIGS[launch, "half on Hopper" if architecture >= 90 else "half"]


# --------------------------------------------------------------------------------------------------------------------
# Kernels. The head dimension is split into powers of two, D0 and a tail D1 (0: no tail): 80 is 64 + 16, because padding
# it to 128 would make every product 1.6 times as large.


@triton.jit
def _load_part(base, rows, stride, START: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Loads columns START to START + SIZE of the given rows, zero beyond HEAD_DIM: (rows, SIZE)."""
    columns = START + tl.arange(0, SIZE)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if START + SIZE > HEAD_DIM:
        part = tl.load(pointers, mask=columns[None, :] < HEAD_DIM, other=0.0)
    else:
        part = tl.load(pointers)
    return part


@triton.jit
def _load_rows(base, rows, stride, HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """Loads (rows, D0) and (rows, D1) of the given rows. Without a tail, the second part is a placeholder."""
    part0 = _load_part(base, rows, stride, 0, D0, HEAD_DIM)
    if D1 > 0:
        part1 = _load_part(base, rows, stride, D0, D1, HEAD_DIM)
    else:
        part1 = part0
    return part0, part1


@triton.jit
def _store_part(base, rows, count, stride, part, START: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Stores the rows below count; the inverse of _load_part."""
    columns = START + tl.arange(0, SIZE)
    mask = (rows[:, None] < count) & (columns[None, :] < HEAD_DIM)
    tl.store(base + rows[:, None] * stride + columns[None, :], part.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, accumulator):
    """accumulator + a @ b."""
    if _INTERPRETED:
        # The interpreter multiplies the bits of bf16 as integers. fp32 gives the same products as a GPU.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=_PRECISION)


@triton.jit
def _dot_transposed(a0, a1, b0, b1, D1: tl.constexpr):
    """a @ b.T over both parts of the head dimension."""
    product = _dot(a0, tl.trans(b0), None)
    if D1 > 0:
        product = _dot(a1, tl.trans(b1), product)
    return product


@triton.jit
def _load_rel_w(pointers, columns, k_w, EVEN_W: tl.constexpr):
    """Loads rel_w, times log2(e), for the columns of a tile; minus infinity outside of the grid."""
    if EVEN_W:
        values = tl.load(pointers + columns)
    else:
        values = tl.load(pointers + columns, mask=columns < k_w, other=float("-inf"))
    return values.to(tl.float32) * _LOG2E


@triton.jit
def _load_rel_h_row(pointers, row, k_h):
    """Loads rel_h, times log2(e), for one row of the grid; minus infinity outside of the grid."""
    values = tl.load(pointers + tl.minimum(row, k_h - 1)).to(tl.float32) * _LOG2E
    return tl.where(row < k_h, values, float("-inf"))


@triton.jit
def _load_rel_h(pointers, first_row, in_tile, k_h, W: tl.constexpr, ROWS: tl.constexpr):
    """Loads rel_h for the keys of a tile, whose indices are in_tile; broadcastable to the scores.

    Uses selects, because a broadcast of a (queries, rows) matrix, as for rel_w, would need a layout conversion through
    shared memory in the inner loop.
    """
    values = _load_rel_h_row(pointers, first_row, k_h)
    for i in tl.static_range(1, ROWS):
        values = tl.where(in_tile < i * W, values, _load_rel_h_row(pointers, first_row + i, k_h))
    return values


@triton.jit
def _keys_of_tile(rows, columns, k_h, k_w):
    """Indices of a tile's keys, row by row, clamped to the grid."""
    keys = tl.minimum(rows, k_h - 1)[:, None] * k_w + tl.minimum(columns, k_w - 1)[None, :]
    return tl.reshape(keys, (rows.shape[0] * columns.shape[0],))


@triton.jit
def _forward_kernel(
    q, k, v, rel_h, rel_w, out, lse,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    rel_h_stride_b, rel_h_stride_h, rel_h_stride_n, rel_w_stride_b, rel_w_stride_h, rel_w_stride_n,
    heads, n_q, k_h, k_w, scale,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    W: tl.constexpr, EVEN_W: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head against all keys."""
    ROWS: tl.constexpr = BLOCK_N // W
    blocks = tl.cdiv(n_q, BLOCK_M)
    # int64, because a head may begin beyond 2**31 elements.
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head_index // heads, head_index % heads
    m = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_clamped = tl.minimum(m, n_q - 1)
    in_tile = tl.arange(0, BLOCK_N)[None, :]
    k += b * k_stride_b + h * k_stride_h
    v += b * v_stride_b + h * v_stride_h
    q0, q1 = _load_rows(q + b * q_stride_b + h * q_stride_h, m_clamped, q_stride_n, HEAD_DIM, D0, D1)
    rel_h += b * rel_h_stride_b + h * rel_h_stride_h + m_clamped[:, None] * rel_h_stride_n
    rel_w += b * rel_w_stride_b + h * rel_w_stride_h + m_clamped[:, None] * rel_w_stride_n

    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        out1 = tl.zeros((BLOCK_M, D1), tl.float32)
    for first_column in range(0, k_w, W):
        columns = first_column + tl.arange(0, W)
        bias_w = _load_rel_w(rel_w, columns[None, :], k_w, EVEN_W)
        bias_w = tl.reshape(tl.broadcast_to(bias_w[:, None, :], (BLOCK_M, ROWS, W)), (BLOCK_M, BLOCK_N))
        for first_row in range(0, k_h, ROWS):
            rows = first_row + tl.arange(0, ROWS)
            # Loaded first, to overlap with the product.
            bias_h = _load_rel_h(rel_h, first_row, in_tile, k_h, W, ROWS)
            keys = _keys_of_tile(rows, columns, k_h, k_w)
            k0, k1 = _load_rows(k, keys, k_stride_n, HEAD_DIM, D0, D1)
            scores = _dot_transposed(q0, q1, k0, k1, D1) * (scale * _LOG2E) + bias_w + bias_h
            # Finite, because the first key of every tile is in the grid.
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))
            shrink = tl.exp2(maximum - new_maximum)
            p = tl.exp2(scores - new_maximum[:, None])
            total = total * shrink + tl.sum(p, 1)
            maximum = new_maximum
            v0, v1 = _load_rows(v, keys, v_stride_n, HEAD_DIM, D0, D1)
            p = p.to(v0.dtype)
            out0 = _dot(p, v0, out0 * shrink[:, None])
            if D1 > 0:
                out1 = _dot(p, v1, out1 * shrink[:, None])

    tl.store(lse + head_index * n_q + m, maximum + tl.log2(total), mask=m < n_q)
    out += (b * n_q * heads + h) * HEAD_DIM  # (B, n_q, heads, HEAD_DIM)
    inverse = 1.0 / total
    _store_part(out, m, n_q, heads * HEAD_DIM, out0 * inverse[:, None], 0, D0, HEAD_DIM)
    if D1 > 0:
        _store_part(out, m, n_q, heads * HEAD_DIM, out1 * inverse[:, None], D0, D1, HEAD_DIM)


@triton.jit
def _backward_queries_kernel(
    grad_out, q, k, v, rel_h, rel_w, out, lse, delta, grad_q, grad_rel_h, grad_rel_w,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    rel_h_stride_b, rel_h_stride_h, rel_h_stride_n, rel_w_stride_b, rel_w_stride_h, rel_w_stride_n,
    heads, n_q, k_h, k_w, scale,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    W: tl.constexpr, EVEN_W: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_M queries of one head and of their biases, and delta = sum(grad_out * out).

    With p the probabilities, the gradient of the scores is p * (grad_out @ v.T - delta) (Dao, section 3.1.2). The
    gradients of the biases are its sums over grid rows and over grid columns.
    """
    ROWS: tl.constexpr = BLOCK_N // W
    blocks = tl.cdiv(n_q, BLOCK_M)
    head_index = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head_index // heads, head_index % heads
    m = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_clamped = tl.minimum(m, n_q - 1)
    in_tile = tl.arange(0, BLOCK_N)[None, :]
    k += b * k_stride_b + h * k_stride_h
    v += b * v_stride_b + h * v_stride_h
    rel_h += b * rel_h_stride_b + h * rel_h_stride_h + m_clamped[:, None] * rel_h_stride_n
    rel_w += b * rel_w_stride_b + h * rel_w_stride_h + m_clamped[:, None] * rel_w_stride_n
    # grad_out, out, grad_q: (B, n_q, heads, HEAD_DIM)
    out_stride_n = heads * HEAD_DIM
    out_offset = (b * n_q * heads + h) * HEAD_DIM
    # lse, delta: (B, heads, n_q); gradients of the biases: (B, heads, n_q, k_h or k_w)
    rows_offset = head_index * n_q

    g0, g1 = _load_rows(grad_out + out_offset, m_clamped, out_stride_n, HEAD_DIM, D0, D1)
    o0, o1 = _load_rows(out + out_offset, m_clamped, out_stride_n, HEAD_DIM, D0, D1)
    row_delta = tl.sum(g0.to(tl.float32) * o0.to(tl.float32), 1)
    if D1 > 0:
        row_delta += tl.sum(g1.to(tl.float32) * o1.to(tl.float32), 1)
    tl.store(delta + rows_offset + m, row_delta, mask=m < n_q)
    row_lse = tl.load(lse + rows_offset + m_clamped)
    q0, q1 = _load_rows(q + b * q_stride_b + h * q_stride_h, m_clamped, q_stride_n, HEAD_DIM, D0, D1)

    grad_q0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        grad_q1 = tl.zeros((BLOCK_M, D1), tl.float32)
    for first_column in range(0, k_w, W):
        columns = first_column + tl.arange(0, W)
        bias_w = _load_rel_w(rel_w, columns[None, :], k_w, EVEN_W) - row_lse[:, None]
        bias_w = tl.reshape(tl.broadcast_to(bias_w[:, None, :], (BLOCK_M, ROWS, W)), (BLOCK_M, BLOCK_N))
        sum_w = tl.zeros((BLOCK_M, W), tl.float32)
        for first_row in range(0, k_h, ROWS):
            rows = first_row + tl.arange(0, ROWS)
            bias_h = _load_rel_h(rel_h, first_row, in_tile, k_h, W, ROWS)
            keys = _keys_of_tile(rows, columns, k_h, k_w)
            k0, k1 = _load_rows(k, keys, k_stride_n, HEAD_DIM, D0, D1)
            scores = _dot_transposed(q0, q1, k0, k1, D1) * (scale * _LOG2E) + bias_w + bias_h
            p = tl.exp2(scores)
            v0, v1 = _load_rows(v, keys, v_stride_n, HEAD_DIM, D0, D1)
            grad_scores = p * (_dot_transposed(g0, g1, v0, v1, D1) - row_delta[:, None])
            grad_scores_rounded = grad_scores.to(k0.dtype)
            grad_q0 = _dot(grad_scores_rounded, k0, grad_q0)
            if D1 > 0:
                grad_q1 = _dot(grad_scores_rounded, k1, grad_q1)
            by_row = tl.reshape(grad_scores, (BLOCK_M, ROWS, W))
            sum_w += tl.sum(by_row, 1)
            sum_h = tl.sum(by_row, 2)
            mask_h = (m[:, None] < n_q) & (rows[None, :] < k_h)
            pointers_h = grad_rel_h + (rows_offset + m)[:, None] * k_h + rows[None, :]
            tl.store(pointers_h, sum_h.to(grad_rel_h.dtype.element_ty), mask=mask_h)
        mask_w = (m[:, None] < n_q) & (columns[None, :] < k_w)
        pointers_w = grad_rel_w + (rows_offset + m)[:, None] * k_w + columns[None, :]
        tl.store(pointers_w, sum_w.to(grad_rel_w.dtype.element_ty), mask=mask_w)
        # Each strip of columns has its own grad_rel_h, summed afterwards: the next strip must not read what other
        # threads of this program may not have written yet.
        grad_rel_h += (tl.num_programs(0) // blocks).to(tl.int64) * n_q * k_h

    _store_part(grad_q + out_offset, m, n_q, out_stride_n, grad_q0 * scale, 0, D0, HEAD_DIM)
    if D1 > 0:
        _store_part(grad_q + out_offset, m, n_q, out_stride_n, grad_q1 * scale, D0, D1, HEAD_DIM)


@triton.jit
def _backward_keys_kernel(
    grad_out, q, k, v, rel_h, rel_w, lse, delta, grad_k, grad_v,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    rel_h_stride_b, rel_h_stride_h, rel_h_stride_n, rel_w_stride_b, rel_w_stride_h, rel_w_stride_n,
    heads, n_q, k_h, k_w, scale,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    W: tl.constexpr, EVEN_W: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of one tile of keys and values of one head, over all queries.

    Scores are (keys, queries), so that p and the scores' gradient need no transposition as left operands.
    """
    ROWS: tl.constexpr = BLOCK_N // W
    strips = tl.cdiv(k_w, W)
    tiles = tl.cdiv(k_h, ROWS) * strips
    head_index = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head_index // heads, head_index % heads
    tile = tl.program_id(0) % tiles
    first_row = tile // strips * ROWS
    rows = first_row + tl.arange(0, ROWS)
    columns = tile % strips * W + tl.arange(0, W)
    in_tile = tl.arange(0, BLOCK_N)[:, None]
    keys = _keys_of_tile(rows, columns, k_h, k_w)
    q += b * q_stride_b + h * q_stride_h
    rel_h += b * rel_h_stride_b + h * rel_h_stride_h
    rel_w += b * rel_w_stride_b + h * rel_w_stride_h
    grad_out += (b * n_q * heads + h) * HEAD_DIM  # (B, n_q, heads, HEAD_DIM)
    lse += head_index * n_q
    delta += head_index * n_q
    k0, k1 = _load_rows(k + b * k_stride_b + h * k_stride_h, keys, k_stride_n, HEAD_DIM, D0, D1)
    v0, v1 = _load_rows(v + b * v_stride_b + h * v_stride_h, keys, v_stride_n, HEAD_DIM, D0, D1)

    grad_k0 = tl.zeros((BLOCK_N, D0), tl.float32)
    grad_v0 = tl.zeros((BLOCK_N, D0), tl.float32)
    if D1 > 0:
        grad_k1 = tl.zeros((BLOCK_N, D1), tl.float32)
        grad_v1 = tl.zeros((BLOCK_N, D1), tl.float32)
    for first_query in range(0, n_q, BLOCK_M):
        m = first_query + tl.arange(0, BLOCK_M)
        m_clamped = tl.minimum(m, n_q - 1)
        bias_h = _load_rel_h(rel_h + m_clamped[None, :] * rel_h_stride_n, first_row, in_tile, k_h, W, ROWS)
        # Infinity gives queries past the last one a probability of zero.
        bias_h -= tl.load(lse + m, mask=m < n_q, other=float("inf"))[None, :]
        bias_w = _load_rel_w(rel_w + m_clamped[None, :] * rel_w_stride_n, columns[:, None], k_w, EVEN_W)
        bias_w = tl.reshape(tl.broadcast_to(bias_w[None, :, :], (ROWS, W, BLOCK_M)), (BLOCK_N, BLOCK_M))
        q0, q1 = _load_rows(q, m_clamped, q_stride_n, HEAD_DIM, D0, D1)
        scores = _dot_transposed(k0, k1, q0, q1, D1) * (scale * _LOG2E) + bias_w + bias_h
        p = tl.exp2(scores)
        g0, g1 = _load_rows(grad_out, m_clamped, heads * HEAD_DIM, HEAD_DIM, D0, D1)
        column_delta = tl.load(delta + m_clamped)
        grad_scores = p * (_dot_transposed(v0, v1, g0, g1, D1) - column_delta[None, :])
        p = p.to(g0.dtype)
        grad_v0 = _dot(p, g0, grad_v0)
        grad_scores = grad_scores.to(q0.dtype)
        grad_k0 = _dot(grad_scores, q0, grad_k0)
        if D1 > 0:
            grad_v1 = _dot(p, g1, grad_v1)
            grad_k1 = _dot(grad_scores, q1, grad_k1)

    # Keys outside of the grid are not stored.
    n_k = k_h * k_w
    inside = tl.reshape((rows < k_h)[:, None] & (columns < k_w)[None, :], (BLOCK_N,))
    keys = tl.where(inside, keys, n_k)
    offset = (b * n_k * heads + h) * HEAD_DIM  # (B, n_k, heads, HEAD_DIM)
    _store_part(grad_k + offset, keys, n_k, heads * HEAD_DIM, grad_k0 * scale, 0, D0, HEAD_DIM)
    _store_part(grad_v + offset, keys, n_k, heads * HEAD_DIM, grad_v0, 0, D0, HEAD_DIM)
    if D1 > 0:
        _store_part(grad_k + offset, keys, n_k, heads * HEAD_DIM, grad_k1 * scale, D0, D1, HEAD_DIM)
        _store_part(grad_v + offset, keys, n_k, heads * HEAD_DIM, grad_v1, D0, D1, HEAD_DIM)


# --------------------------------------------------------------------------------------------------------------------
# Launches: tensors in, tensors out, for one configuration


def _split_head_dim(d: int) -> tuple[int, int]:
    """D0, the largest power of two up to d, and D1, the rest padded to a power of two or 0; each at least 16."""
    d0 = max(16, 1 << (d.bit_length() - 1))
    return d0, max(16, triton.next_power_of_2(d - d0)) if d > d0 else 0


def _tile_width(k_size: tuple[int, int], block_n: int) -> int:
    """W, the columns in a tile of keys: the power of two from 16 to block_n that needs the fewest tiles."""
    widths = [w for w in (16, 32, 64, 128) if w <= block_n]
    # Of equals the widest, which needs the fewest selects.
    return min(widths, key=lambda w: (triton.cdiv(k_size[0], block_n // w) * triton.cdiv(k_size[1], w), -w))


def _constants(d: int, k_size: tuple[int, int], config: Config) -> dict[str, Any]:
    """The constexpr arguments of the kernels."""
    d0, d1 = _split_head_dim(d)
    w = _tile_width(k_size, config.block_n)
    even = k_size[1] % w == 0
    return dict(HEAD_DIM=d, D0=d0, D1=d1, BLOCK_M=config.block_m, BLOCK_N=config.block_n, W=w, EVEN_W=even)


def _launch(kernel: Any, programs: int, pointers: tuple[Tensor, ...], inputs: Inputs, config: Config) -> None:
    """Runs a kernel with the given number of programs for each head."""
    batch, heads, n_q, d = inputs.q.shape
    if programs * batch * heads == 0:
        return
    strides = [stride for tensor in inputs[:5] for stride in tensor.stride()[:3]]
    sizes = (heads, n_q, *inputs.k_size)
    options = _constants(d, inputs.k_size, config)
    options |= dict(num_warps=config.num_warps, num_stages=config.num_stages)
    # triton launches on the current device, not on that of the tensors
    with torch.cuda.device_of(inputs.q):
        kernel[(programs * batch * heads,)](*pointers, *strides, *sizes, inputs.scale, **options)


def _as_rows(tensor: Tensor) -> Tensor:
    """The tensor with the strides of empty_token_major."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def forward(config: Config, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output, and the log2 of each query's softmax denominator, (B, heads, Nq) fp32."""
    q = inputs.q
    out, lse = empty_token_major(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _launch(_forward_kernel, triton.cdiv(q.shape[2], config.block_m), (*inputs[:5], out, lse), inputs, config)
    return out, lse


def backward_queries(
    config: Config, inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, rel_h and rel_w, and delta, (B, heads, Nq) fp32, for backward_keys."""
    q, rel_h, rel_w = inputs.q, inputs.rel_h, inputs.rel_w
    strips = triton.cdiv(inputs.k_size[1], _tile_width(inputs.k_size, config.block_n))
    grad_q, delta = empty_token_major(q), torch.empty_like(lse)
    grad_rel_h = rel_h.new_empty((strips, *rel_h.shape), dtype=rel_h.dtype if strips == 1 else torch.float32)
    grad_rel_w = rel_w.new_empty(rel_w.shape)
    pointers = (grad_out, *inputs[:5], out, lse, delta, grad_q, grad_rel_h, grad_rel_w)
    _launch(_backward_queries_kernel, triton.cdiv(q.shape[2], config.block_m), pointers, inputs, config)
    return grad_q, grad_rel_h[0] if strips == 1 else grad_rel_h.sum(0).to(rel_h.dtype), grad_rel_w, delta


def backward_keys(
    config: Config, inputs: Inputs, grad_out: Tensor, lse: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of k and v."""
    k_h, k_w = inputs.k_size
    w = _tile_width(inputs.k_size, config.block_n)
    grad_k, grad_v = empty_token_major(inputs.k), empty_token_major(inputs.v)
    programs = triton.cdiv(k_h, config.block_n // w) * triton.cdiv(k_w, w)
    pointers = (grad_out, *inputs[:5], lse, delta, grad_k, grad_v)
    _launch(_backward_keys_kernel, programs, pointers, inputs, config)
    return grad_k, grad_v


_fastest: dict[tuple[Any, ...], Config] = {}


def _tuned(launch: Callable[..., Any], inputs: Inputs, *args: Tensor) -> Any:
    """Runs a launch function with its fastest configuration, which the first call for similar sizes measures.

    triton.autotune cannot be used, because allocations depend on the configuration.
    """
    q = inputs.q
    # The interpreter is fastest with the largest tiles, which are Hopper's.
    major, minor = (9, 0) if INTERPRETED else torch.cuda.get_device_capability(q.device)
    configs = configurations(launch.__name__, q.dtype, 10 * major + minor)
    # A CUDA graph cannot record timing, and times of the interpreter mean nothing.
    if INTERPRETED or q.numel() == 0 or torch.cuda.is_current_stream_capturing():
        return launch(configs[0], inputs, *args)
    sizes = (q.shape[0] * q.shape[1], q.shape[2], *inputs.k_size)
    key = (launch, q.device, q.dtype, q.shape[3], *(triton.next_power_of_2(size) for size in sizes))
    if key not in _fastest:
        times = {}
        for config in configs:
            try:
                with torch.cuda.device_of(q):
                    times[config] = triton.testing.do_bench(
                        partial(launch, config, inputs, *args), warmup=5, rep=20, return_mode="median"
                    )
            except triton.runtime.errors.OutOfResources as error:  # too little shared memory
                too_large = error
        if not times:
            raise too_large
        _fastest[key] = min(times, key=times.__getitem__)
    return launch(_fastest[key], inputs, *args)


# --------------------------------------------------------------------------------------------------------------------
# The operator, opaque to torch.compile


def _inputs(tensors: Sequence[Tensor], k_size: Sequence[int], scale: float) -> Inputs:
    dense = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors)
    return Inputs(*dense, tuple(k_size), scale)


@torch.library.custom_op("lift_det::rel_pos_attention_triton", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_size: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """The output and the log2 of the softmax denominators. Differentiable once in the five tensors.

    rel_h (B, heads, Nq, k_h) and rel_w (B, heads, Nq, k_w) are the terms of :func:`.bias.bias_terms`; tensors may have
    any strides.
    """
    return _tuned(forward, _inputs((q, k, v, rel_h, rel_w), k_size, scale))


@torch.library.custom_op("lift_det::rel_pos_attention_triton_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor, tensors: Sequence[Tensor], out: Tensor, lse: Tensor, k_size: Sequence[int], scale: float
) -> list[Tensor]:
    inputs = _inputs(tensors, k_size, scale)
    grad_out, out, lse = _as_rows(grad_out), _as_rows(out), lse.contiguous()
    grad_q, grad_rel_h, grad_rel_w, delta = _tuned(backward_queries, inputs, grad_out, out, lse)
    return [grad_q, *_tuned(backward_keys, inputs, grad_out, lse, delta), grad_rel_h, grad_rel_w]


@_attention.register_fake
def _(q, k, v, rel_h, rel_w, k_size, scale):
    return empty_token_major(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_attention_backward.register_fake
def _(grad_out, tensors, out, lse, k_size, scale):
    return [empty_token_major(x) for x in tensors[:3]] + [x.new_empty(x.shape) for x in tensors[3:]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.k_size, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    return *_attention_backward(grad_out, tensors, out, lse, ctx.k_size, ctx.scale), None, None


_attention.register_autograd(_backward, setup_context=_setup_context)


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """See :func:`.reference.attention`."""
    out, _ = _attention(q, k, v, *bias_terms(q, rows, columns), (rows.shape[1], columns.shape[1]), scale)
    return out


def unmet_condition(q: Tensor) -> str:
    """Returns why the kernels cannot take these queries, or an empty string."""
    if not (q.is_cuda or INTERPRETED):
        return f"needs CUDA tensors, got tensors on {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"needs fp16, bf16 or fp32, got {q.dtype}"
    if q.shape[-1] not in range(8, 129, 8):
        return f"needs heads of a multiple of 8 channels up to 128, got {q.shape[-1]}"
    return ""
