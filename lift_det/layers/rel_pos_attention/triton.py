"""Attention with decomposed relative positions as a flash attention kernel, forward and backward.

The score of a query m and the key in row r and column c of the key grid is (Li et al., arXiv 2203.16527, who take it
from MViTv2, Li et al., arXiv 2112.01526, equation 4)

    s[m, (r, c)] = scale * q[m]·k[(r, c)] + rel_h[m, r] + rel_w[m, c]

The online softmax is FlashAttention's (Dao, arXiv 2307.08691): no matrix of queries by keys is ever in memory.

A tile of keys is a small rectangle of the grid: ROWS rows of W columns, BLOCK_N = ROWS * W keys. So
- the tile of ``rel_w`` is the same for all tiles below each other and stays in registers, and ``rel_h`` is one value
  for a query and a grid row: no gathers and no products with one-hot vectors;
- the gradient of ``rel_w`` is a running sum in registers and that of ``rel_h`` a sum over a tile's columns that is
  written once: no atomics, so a configuration gives the same numbers every time;
- whatever sticks out of the grid gets a bias of minus infinity, and nothing else has to be masked. Loads of q, k and v
  that stick out are clamped to the last row instead.

The kernels run on CUDA tensors, or on CPU tensors where the process was started with TRITON_INTERPRET=1. fp32 products
are real fp32 (``input_precision="ieee"``: no TF32, and therefore no tensor cores).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import empty_beside_heads

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernels run in Triton's interpreter, which triton.jit decides when this file is imported."""

_INTERPRETED = tl.constexpr(INTERPRETED)

# exp2 is one instruction, exp is two: scores and biases are multiplied by log2(e) and everything is in powers of two.
_LOG2E = tl.constexpr(1.4426950408889634)


class Inputs(NamedTuple):
    """What the score is made of: the arguments of attention, where the last dimension of every tensor is dense."""

    q: Tensor
    k: Tensor
    v: Tensor
    rel_h: Tensor
    rel_w: Tensor
    k_size: tuple[int, int]
    scale: float


class Config(NamedTuple):
    """How one kernel is cut up: queries and keys in a tile, warps, and stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Few enough to try all of them at the first call, and every one is tested. Chosen so that none spills at head dimension
# 64 on the architecture it is for (tools/compile_kernels.py), and that all but Hopper's fit the 99 KB of shared memory
# of consumer GPUs. Hopper's products read operands from shared memory, which leaves registers for larger tiles.
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
    """Among what the fastest is chosen.

    Args:
        launch: "forward", "backward_queries" or "backward_keys", the functions below that take a configuration.
        dtype: of q, k and v.
        architecture: the GPU's, 80 for sm_80.
    """
    if dtype == torch.float32:
        return _CONFIGS[launch, "float"]
    return _CONFIGS[launch, "half on Hopper" if architecture >= 90 else "half"]


# --------------------------------------------------------------------------------------------------------------------
# Kernels. Names in their shapes: M = BLOCK_M queries, N = BLOCK_N keys. The head dimension, padded to powers of two, is
# D0 and a tail D1 (0: none): 80 is 64 + 16, where padding it to 128 would make every product 1.6 times as large.


@triton.jit
def _load_part(base, rows, stride, START: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Columns START to START + SIZE of the given rows, zero beyond HEAD_DIM: (rows, SIZE)."""
    columns = START + tl.arange(0, SIZE)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if START + SIZE > HEAD_DIM:
        part = tl.load(pointers, mask=columns[None, :] < HEAD_DIM, other=0.0)
    else:
        part = tl.load(pointers)
    return part


@triton.jit
def _load_rows(base, rows, stride, HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """Both parts of the given rows, (rows, D0) and (rows, D1); where there is no tail, the second is not to be used."""
    part0 = _load_part(base, rows, stride, 0, D0, HEAD_DIM)
    if D1 > 0:
        part1 = _load_part(base, rows, stride, D0, D1, HEAD_DIM)
    else:
        part1 = part0
    return part0, part1


@triton.jit
def _store_part(base, rows, count, stride, part, START: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The inverse of _load_part, for those rows that are below count."""
    columns = START + tl.arange(0, SIZE)
    mask = (rows[:, None] < count) & (columns[None, :] < HEAD_DIM)
    tl.store(base + rows[:, None] * stride + columns[None, :], part.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b."""
    if _INTERPRETED:
        # The interpreter multiplies bf16 as if its bits were integers. The same numbers as fp32 give what a GPU does.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def _dot_transposed(a0, a1, b0, b1, D1: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b.T over both parts of the head dimension."""
    product = _dot(a0, tl.trans(b0), None, PRECISION)
    if D1 > 0:
        product = _dot(a1, tl.trans(b1), product, PRECISION)
    return product


@triton.jit
def _load_rel_w(pointers, columns, k_w, EVEN_W: tl.constexpr):
    """rel_w in units of log2 for the columns of a tile; minus infinity beyond the grid's last one."""
    if EVEN_W:
        values = tl.load(pointers + columns)
    else:
        values = tl.load(pointers + columns, mask=columns < k_w, other=float("-inf"))
    return values.to(tl.float32) * _LOG2E


@triton.jit
def _load_rel_h_row(pointers, row, k_h):
    """rel_h in units of log2 for one row of the grid; minus infinity beyond its last one."""
    values = tl.load(pointers + tl.minimum(row, k_h - 1)).to(tl.float32) * _LOG2E
    return tl.where(row < k_h, values, float("-inf"))


@triton.jit
def _load_rel_h(pointers, first_row, in_tile, k_h, W: tl.constexpr, ROWS: tl.constexpr):
    """rel_h for the keys of a tile, in_tile their numbers in it; of a shape that broadcasts to the scores'.

    Not loaded as a matrix of queries and rows and then spread, as rel_w is: its layout would not be that of the scores,
    and a conversion in the inner loop goes through shared memory. A select costs little where ROWS is small, and
    nothing where the compiler knows which row the keys of a thread are in.
    """
    values = _load_rel_h_row(pointers, first_row, k_h)
    for i in tl.static_range(1, ROWS):
        values = tl.where(in_tile < i * W, values, _load_rel_h_row(pointers, first_row + i, k_h))
    return values


@triton.jit
def _keys_of_tile(rows, columns, k_h, k_w):
    """The numbers of a tile's keys, row after row; those that stick out are moved to the grid's last row and column."""
    keys = tl.minimum(rows, k_h - 1)[:, None] * k_w + tl.minimum(columns, k_w - 1)[None, :]
    return tl.reshape(keys, (rows.shape[0] * columns.shape[0],))


@triton.jit
def _forward_kernel(
    q, k, v, rel_h, rel_w, out, lse,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    rel_h_stride_b, rel_h_stride_h, rel_h_stride_n, rel_w_stride_b, rel_w_stride_h, rel_w_stride_n,
    heads, n_q, k_h, k_w, scale,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    W: tl.constexpr, EVEN_W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head against all keys."""
    ROWS: tl.constexpr = BLOCK_N // W
    blocks = tl.cdiv(n_q, BLOCK_M)
    # int64: a head may begin beyond 2**31 elements. Offsets inside one stay below.
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
            # Asked for first, so that it arrives while the product is on its way.
            bias_h = _load_rel_h(rel_h, first_row, in_tile, k_h, W, ROWS)
            keys = _keys_of_tile(rows, columns, k_h, k_w)
            k0, k1 = _load_rows(k, keys, k_stride_n, HEAD_DIM, D0, D1)
            scores = _dot_transposed(q0, q1, k0, k1, D1, PRECISION) * (scale * _LOG2E) + bias_w + bias_h
            # Never minus infinity: the first key of every tile is in the grid.
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))
            shrink = tl.exp2(maximum - new_maximum)
            p = tl.exp2(scores - new_maximum[:, None])
            total = total * shrink + tl.sum(p, 1)
            maximum = new_maximum
            v0, v1 = _load_rows(v, keys, v_stride_n, HEAD_DIM, D0, D1)
            p = p.to(v0.dtype)
            out0 = _dot(p, v0, out0 * shrink[:, None], PRECISION)
            if D1 > 0:
                out1 = _dot(p, v1, out1 * shrink[:, None], PRECISION)

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
    W: tl.constexpr, EVEN_W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_M queries of one head and of their biases, and delta = sum(grad_out * out).

    With p the probabilities, the gradient of the scores is p * (grad_out @ v.T - delta) (Dao, section 3.1.2). The
    biases are added to the scores, so theirs are its sums over a grid row and over a grid column.
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
            scores = _dot_transposed(q0, q1, k0, k1, D1, PRECISION) * (scale * _LOG2E) + bias_w + bias_h
            p = tl.exp2(scores)
            v0, v1 = _load_rows(v, keys, v_stride_n, HEAD_DIM, D0, D1)
            grad_scores = p * (_dot_transposed(g0, g1, v0, v1, D1, PRECISION) - row_delta[:, None])
            grad_scores_rounded = grad_scores.to(k0.dtype)
            grad_q0 = _dot(grad_scores_rounded, k0, grad_q0, PRECISION)
            if D1 > 0:
                grad_q1 = _dot(grad_scores_rounded, k1, grad_q1, PRECISION)
            by_row = tl.reshape(grad_scores, (BLOCK_M, ROWS, W))
            sum_w += tl.sum(by_row, 1)
            sum_h = tl.sum(by_row, 2)
            tl.store(
                grad_rel_h + (rows_offset + m)[:, None] * k_h + rows[None, :],
                sum_h.to(grad_rel_h.dtype.element_ty),
                mask=(m[:, None] < n_q) & (rows[None, :] < k_h),
            )
        tl.store(
            grad_rel_w + (rows_offset + m)[:, None] * k_w + columns[None, :],
            sum_w.to(grad_rel_w.dtype.element_ty),
            mask=(m[:, None] < n_q) & (columns[None, :] < k_w),
        )
        # Each strip of columns has a grad_rel_h of its own, added up afterwards: the next strip must not read what
        # other threads of this program may not have written yet.
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
    W: tl.constexpr, EVEN_W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of one tile of keys and values of one head, over all queries.

    Scores are (keys, queries) here, so that p and the scores' gradient are left operands without a transposition.
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
        # Infinity makes the probabilities of queries that stick out zero.
        bias_h -= tl.load(lse + m, mask=m < n_q, other=float("inf"))[None, :]
        bias_w = _load_rel_w(rel_w + m_clamped[None, :] * rel_w_stride_n, columns[:, None], k_w, EVEN_W)
        bias_w = tl.reshape(tl.broadcast_to(bias_w[None, :, :], (ROWS, W, BLOCK_M)), (BLOCK_N, BLOCK_M))
        q0, q1 = _load_rows(q, m_clamped, q_stride_n, HEAD_DIM, D0, D1)
        scores = _dot_transposed(k0, k1, q0, q1, D1, PRECISION) * (scale * _LOG2E) + bias_w + bias_h
        p = tl.exp2(scores)
        g0, g1 = _load_rows(grad_out, m_clamped, heads * HEAD_DIM, HEAD_DIM, D0, D1)
        column_delta = tl.load(delta + m_clamped)
        grad_scores = p * (_dot_transposed(v0, v1, g0, g1, D1, PRECISION) - column_delta[None, :])
        p = p.to(g0.dtype)
        grad_v0 = _dot(p, g0, grad_v0, PRECISION)
        grad_scores = grad_scores.to(q0.dtype)
        grad_k0 = _dot(grad_scores, q0, grad_k0, PRECISION)
        if D1 > 0:
            grad_v1 = _dot(p, g1, grad_v1, PRECISION)
            grad_k1 = _dot(grad_scores, q1, grad_k1, PRECISION)

    # A key that sticks out must not be stored: its row is made larger than any.
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
    """D0 and D1: the largest power of two in d, at least 16, and what is left padded to one (0: nothing is left)."""
    d0 = max(16, 1 << (d.bit_length() - 1))
    return d0, max(16, triton.next_power_of_2(d - d0)) if d > d0 else 0


def _tile_width(k_size: tuple[int, int], block_n: int) -> int:
    """W, the columns in a tile of keys: the power of two from 16 to block_n that needs the fewest tiles."""
    widths = [w for w in (16, 32, 64, 128) if w <= block_n]
    # In a draw the widest: fewer rows in a tile, so fewer selects.
    return min(widths, key=lambda w: (triton.cdiv(k_size[0], block_n // w) * triton.cdiv(k_size[1], w), -w))


def _constants(d: int, k_size: tuple[int, int], config: Config) -> dict[str, Any]:
    """The constant arguments that all three kernels share."""
    d0, d1 = _split_head_dim(d)
    w = _tile_width(k_size, config.block_n)
    return dict(
        HEAD_DIM=d,
        D0=d0,
        D1=d1,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        W=w,
        EVEN_W=k_size[1] % w == 0,
        # Means nothing where the operands are not fp32.
        PRECISION="ieee",
    )


def _launch(kernel: Any, programs: int, pointers: tuple[Tensor, ...], inputs: Inputs, config: Config) -> None:
    """Run a kernel with so many programs for each head."""
    batch, heads, n_q, d = inputs.q.shape
    if programs * batch * heads == 0:
        return
    # triton launches on the current device, whatever the tensors are on.
    with torch.cuda.device_of(inputs.q):
        kernel[(programs * batch * heads,)](
            *pointers,
            *(stride for tensor in inputs[:5] for stride in tensor.stride()[:3]),
            heads,
            n_q,
            *inputs.k_size,
            inputs.scale,
            **_constants(d, inputs.k_size, config),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


def _as_rows(tensor: Tensor) -> Tensor:
    """The tensor with the strides of empty_beside_heads; a copy only if it has others."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def forward(config: Config, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output, and log2 of each query's sum of 2**score (B, heads, Nq), fp32, its scores in units of log2."""
    q = inputs.q
    out, lse = empty_beside_heads(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _launch(_forward_kernel, triton.cdiv(q.shape[2], config.block_m), (*inputs[:5], out, lse), inputs, config)
    return out, lse


def backward_queries(
    config: Config, inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, rel_h and rel_w, and delta (B, heads, Nq), fp32, which backward_keys needs."""
    q, rel_h, rel_w = inputs.q, inputs.rel_h, inputs.rel_w
    strips = triton.cdiv(inputs.k_size[1], _tile_width(inputs.k_size, config.block_n))
    grad_q, delta = empty_beside_heads(q), torch.empty_like(lse)
    grad_rel_h = rel_h.new_empty((strips, *rel_h.shape), dtype=rel_h.dtype if strips == 1 else torch.float32)
    grad_rel_w = rel_w.new_empty(rel_w.shape)
    pointers = (grad_out, *inputs[:5], out, lse, delta, grad_q, grad_rel_h, grad_rel_w)
    _launch(_backward_queries_kernel, triton.cdiv(q.shape[2], config.block_m), pointers, inputs, config)
    return grad_q, grad_rel_h[0] if strips == 1 else grad_rel_h.sum(0).to(rel_h.dtype), grad_rel_w, delta


def backward_keys(
    config: Config, inputs: Inputs, grad_out: Tensor, lse: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of k and v."""
    k_h, k_w = inputs.k_size
    w = _tile_width(inputs.k_size, config.block_n)
    grad_k, grad_v = empty_beside_heads(inputs.k), empty_beside_heads(inputs.v)
    programs = triton.cdiv(k_h, config.block_n // w) * triton.cdiv(k_w, w)
    pointers = (grad_out, *inputs[:5], lse, delta, grad_k, grad_v)
    _launch(_backward_keys_kernel, programs, pointers, inputs, config)
    return grad_k, grad_v


_fastest: dict[tuple[Any, ...], Config] = {}


def _tuned(launch: Callable[..., Any], inputs: Inputs, *args: Tensor) -> Any:
    """Run a launch with its quickest configuration, which the first call for sizes like these finds by trying all.

    Not triton.autotune, because how a launch allocates depends on its configuration.
    """
    q = inputs.q
    # The interpreter takes as long for a tile whatever its size: Hopper's are the largest.
    major, minor = (9, 0) if INTERPRETED else torch.cuda.get_device_capability(q.device)
    configs = configurations(launch.__name__, q.dtype, 10 * major + minor)
    # Timing is no part of what a CUDA graph may record, and the interpreter's times mean nothing.
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
            except triton.runtime.errors.OutOfResources as error:  # this GPU has less shared memory than it takes
                too_large = error
        if not times:
            raise too_large
        _fastest[key] = min(times, key=times.__getitem__)
    return launch(_fastest[key], inputs, *args)


# --------------------------------------------------------------------------------------------------------------------
# The operator. Opaque to torch.compile, which needs to know no more than the shapes and strides of what comes out.


def _inputs(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_h: int, k_w: int, scale: float) -> Inputs:
    dense = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v, rel_h, rel_w))
    return Inputs(*dense, (k_h, k_w), scale)


@torch.library.custom_op("lift_det::rel_pos_attention_triton", mutates_args=())
def _op(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_h: int, k_w: int, scale: float
) -> tuple[Tensor, Tensor]:
    return _tuned(forward, _inputs(q, k, v, rel_h, rel_w, k_h, k_w, scale))


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_h: int, k_w: int, scale: float
) -> tuple[Tensor, Tensor]:
    return empty_beside_heads(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("lift_det::rel_pos_attention_triton_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    out: Tensor,
    lse: Tensor,
    k_h: int,
    k_w: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _inputs(q, k, v, rel_h, rel_w, k_h, k_w, scale)
    grad_out, out, lse = _as_rows(grad_out), _as_rows(out), lse.contiguous()
    grad_q, grad_rel_h, grad_rel_w, delta = _tuned(backward_queries, inputs, grad_out, out, lse)
    grad_k, grad_v = _tuned(backward_keys, inputs, grad_out, lse, delta)
    return grad_q, grad_k, grad_v, grad_rel_h, grad_rel_w


@_backward_op.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    out: Tensor,
    lse: Tensor,
    k_h: int,
    k_w: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        empty_beside_heads(q),
        empty_beside_heads(k),
        empty_beside_heads(v),
        rel_h.new_empty(rel_h.shape),
        rel_w.new_empty(rel_w.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.k_h, ctx.k_w, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = _backward_op(grad_out, *ctx.saved_tensors, ctx.k_h, ctx.k_w, ctx.scale)
    return *gradients, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_size: tuple[int, int], scale: float
) -> Tensor:
    """Attention with decomposed relative positions; differentiable once in q, k, v, rel_h and rel_w.

    Args:
        q: (B, heads, Nq, d), of any strides; d a multiple of 8 up to 128. fp16, bf16 or fp32, as are k and v.
        k: (B, heads, k_h * k_w, d), row after row of the key grid.
        v: (B, heads, k_h * k_w, d).
        rel_h: (B, heads, Nq, k_h), what is added to a query's scores with the keys of each grid row; finite, of any
            of these three types.
        rel_w: (B, heads, Nq, k_w), the same for the columns.
        k_size: (k_h, k_w), the rows and columns of the key grid.
        scale: what products of queries and keys are multiplied by.

    Returns:
        (B, heads, Nq, d) of q's type, in memory (B, Nq, heads, d).

    Raises:
        ValueError: shapes, types, devices or a head dimension that do not fit.
        RuntimeError: the tensors are not on a CUDA device and Triton's interpreter is not on.
    """
    _check(q, k, v, rel_h, rel_w, k_size)
    out, _ = _op(q, k, v, rel_h, rel_w, *k_size, scale)
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_size: tuple[int, int]) -> None:
    """Raise what attention says it raises."""
    k_h, k_w = k_size
    if q.ndim != 4:
        raise ValueError(f"q has to be (B, heads, Nq, d), but is {tuple(q.shape)}")
    batch, heads, n_q, d = q.shape
    if d % 8 or not 8 <= d <= 128:
        raise ValueError(f"the triton kernels take head dimensions that are a multiple of 8 up to 128, not {d}")
    if k_h < 1 or k_w < 1:
        raise ValueError(f"the key grid has to have at least one row and one column, but is {k_h} x {k_w}")
    expected = dict(k=(k_h * k_w, d), v=(k_h * k_w, d), rel_h=(n_q, k_h), rel_w=(n_q, k_w))
    for (name, shape), tensor in zip(expected.items(), (k, v, rel_h, rel_w), strict=True):
        if tensor.shape != (batch, heads, *shape):
            raise ValueError(
                f"{name} has to be {(batch, heads, *shape)} beside q {tuple(q.shape)} and a key grid of {k_h} x {k_w}, "
                f"but is {tuple(tensor.shape)}"
            )
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, but q is on {q.device}")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v have to be all fp16, bf16 or fp32, but are {q.dtype}, {k.dtype}, {v.dtype}")
    for name, tensor in (("rel_h", rel_h), ("rel_w", rel_w)):
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has to be fp16, bf16 or fp32, but is {tensor.dtype}")
    if not (q.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"the triton kernels run on CUDA tensors, not on {q.device}; for tests on a CPU, set TRITON_INTERPRET=1 "
            "before triton is imported"
        )


# --------------------------------------------------------------------------------------------------------------------


_SPEC_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def compilation_specs() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int, tuple[int]]]:
    """What tools/compile_kernels.py compiles: every kernel, type and configuration, at head dimensions 64 and 80.

    The key grids are ViTDet's: a window, and the whole of a 512-pixel and of a 1024-pixel image.
    """
    kernels = {
        "forward": _forward_kernel,
        "backward_queries": _backward_queries_kernel,
        "backward_keys": _backward_keys_kernel,
    }
    cases = itertools.product((80, 90), kernels.items(), _SPEC_DTYPES.items(), (64, 80), (14, 32, 64))
    for architecture, (name, kernel), (type_name, dtype), d, side in cases:
        for config in configurations(name, dtype, architecture):
            constants = _constants(d, (side, side), config)
            label = f"attention {name}, {type_name}, d {d}, keys {side}x{side}, tile {config.block_m}x{config.block_n}"
            signature = _signature(kernel, constants, type_name, side % 16 == 0)
            yield label, kernel, signature, constants, config.num_warps, config.num_stages, (architecture,)


def _signature(kernel: Any, constants: dict[str, Any], type_name: str, even: bool) -> dict[str, str]:
    """The types of a kernel's arguments as tools/compile_kernels.py wants them; even: the grid's sides divide by 16."""
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in ("lse", "delta"):
            signature[argument] = "*fp32:16"
        elif argument == "scale":
            signature[argument] = "fp32"
        elif argument == "heads":
            signature[argument] = "i32"
        elif argument in ("n_q", "k_h", "k_w") or argument.startswith(("rel_h_stride", "rel_w_stride")):
            signature[argument] = "i32:16" if even else "i32"
        elif "_stride_" in argument:  # multiples of the head dimension
            signature[argument] = "i32:16"
        else:
            signature[argument] = f"*{type_name}:16"
    return signature
