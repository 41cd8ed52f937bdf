"""Attention with relative positions: the reference against detectron2, and the other forms against the reference."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.backbone.utils import add_decomposed_rel_pos
from torch import Tensor
from torch.testing import assert_close

from lift_det.layers import rel_pos_attention
from lift_det.layers.rel_pos_attention import reference, sdpa
from lift_det.layers.rel_pos_attention.bias import relative_vectors

pytestmark = pytest.mark.usefixtures("one_thread")

# batch, heads, query grid, key grid, width
SHAPES = {
    "window": (3, 2, (14, 14), (14, 14), 64),
    "ragged": (1, 2, (20, 33), (20, 33), 64),
    "huge": (1, 1, (9, 31), (9, 31), 80),
    "one token": (2, 1, (1, 1), (1, 1), 8),
    "more keys": (2, 2, (5, 6), (10, 12), 16),
    "more queries": (2, 2, (8, 6), (4, 3), 16),
}


def make(shape: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k and v as views of one projection, as in a ViT, and tables."""
    torch.manual_seed(0)
    batch, heads, q_size, k_size, width = SHAPES[shape]

    def heads_of(size: tuple[int, int]) -> Tensor:
        return torch.randn(batch, size[0] * size[1], 2, heads, width, dtype=dtype).permute(2, 0, 3, 1, 4)

    q, (k, v) = heads_of(q_size)[0], heads_of(k_size)
    tables = [0.3 * torch.randn(2 * max(a, b) - 1, width, dtype=dtype) for a, b in zip(q_size, k_size, strict=True)]
    return tuple(x.detach().requires_grad_() for x in (q, k, v, *tables))


def run(implementation: str, inputs: tuple[Tensor, ...], shape: str) -> Tensor:
    _, _, q_size, k_size, width = SHAPES[shape]
    return rel_pos_attention(*inputs, q_size, k_size, width**-0.5, implementation)


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape).to(out), retain_graph=True)


def assert_equal(out: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Output and gradients in fp64, where no error passes for rounding."""
    assert_close(out, expected, atol=1e-12, rtol=1e-12)
    assert_close(gradients(out, inputs), gradients(expected, inputs), atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("table_length", [None, 7])
def test_reference_equals_detectron2(shape: str, table_length: int | None) -> None:
    batch, heads, q_size, k_size, width = SHAPES[shape]
    q, k, v, table_h, table_w = make(shape, torch.float32)
    if table_length:  # interpolated
        table_h, table_w = torch.randn(2, table_length, width)
    q_, k_, v_ = (x.flatten(0, 1) for x in (q, k, v))
    scores = (q_ * width**-0.5) @ k_.transpose(-2, -1)
    scores = add_decomposed_rel_pos(scores, q_, table_h, table_w, q_size, k_size)
    expected = (scores.softmax(dim=-1) @ v_).unflatten(0, (batch, heads))
    assert_close(run("reference", (q, k, v, table_h, table_w), shape), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [sdpa.blocked_attention, sdpa.masked_attention])
def test_forms_equal_the_reference(form, shape: str) -> None:
    inputs = make(shape)
    _, _, q_size, k_size, width = SHAPES[shape]
    q, k, v, table_h, table_w = inputs
    rows = relative_vectors(table_h, q_size[0], k_size[0])
    columns = relative_vectors(table_w, q_size[1], k_size[1])
    arguments = (q, k, v, rows, columns, width**-0.5)
    assert_equal(form(*arguments), reference.attention(*arguments), inputs)


@pytest.mark.parametrize("block", [1, 300, 40_000, 10**9])
def test_any_block_size(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """One row at a time, some rows, some heads, everything."""
    inputs = [x.detach()[:, :, :30] if x.dim() == 4 else x.detach() for x in make("window")]
    inputs = tuple(x.requires_grad_() for x in inputs)
    arguments = (*inputs, (5, 6), (5, 6), 0.125)
    monkeypatch.setattr(sdpa, "_BLOCK_SCORES", block)
    assert_equal(rel_pos_attention(*arguments), rel_pos_attention(*arguments, implementation="reference"), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["window", "ragged", "huge"])
def test_errors(shape: str, dtype: torch.dtype) -> None:
    """Against fp64, at most twice those of the reference in the same dtype."""
    exact_inputs = tuple(x.detach().to(dtype).double().requires_grad_() for x in make(shape))
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in exact_inputs)
    exact, eager = run("reference", exact_inputs, shape), run("reference", inputs, shape)
    out = run("sdpa", inputs, shape)
    results = [(x, *gradients(x, given)) for x, given in ((out, inputs), (eager, inputs), (exact, exact_inputs))]
    for ours, eagers, exacts in zip(*results, strict=True):
        error, bound = ((x.double() - exacts).norm() / exacts.norm() for x in (ours, eagers))
        assert error <= 2 * bound + 4 * torch.finfo(dtype).eps


def test_operator_passes_opcheck() -> None:
    inputs = [x.detach()[:, :, :6] if x.dim() == 4 else x.detach() for x in make("window", torch.float32)]
    rows, columns = relative_vectors(inputs[3], 2, 2), relative_vectors(inputs[4], 3, 3)
    arguments = tuple(x.clone().requires_grad_() for x in (*inputs[:3], rows, columns))
    torch.library.opcheck(torch.ops.lift_det.rel_pos_attention_blocked, (*arguments, 0.125))


def test_autocast() -> None:
    inputs = make("window", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = run("sdpa", inputs, "window")
        expected = run("sdpa", tuple(x.detach().bfloat16() for x in inputs), "window")
    assert out.dtype == torch.bfloat16
    assert_close(out, expected, atol=0.02, rtol=0.02)  # the tables are rounded before or after the look-up
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(out, inputs))


def test_memory_is_linear_in_tokens() -> None:
    """Memory kept for the backward pass, with four times the tokens; all scores take 16 times as much."""

    def kept_bytes(implementation: str, side: int) -> int:
        storages: dict[int, int] = {}
        q, k, v = torch.randn(3, 1, 2, side * side, 16, requires_grad=True)
        table = torch.randn(2 * side - 1, 16, requires_grad=True)

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            rel_pos_attention(q, k, v, table, table, (side, side), (side, side), 0.25, implementation)
        return sum(storages.values())

    assert kept_bytes("auto", 32) < 4.2 * kept_bytes("auto", 16)
    assert kept_bytes("reference", 32) > 12 * kept_bytes("reference", 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(implementation="flash"), "flash"),
        (dict(q_size=(14, 13)), r"182.*\(3, 2, 196, 64\)"),
        (dict(k=torch.zeros(3, 2, 196, 32)), r"k \(3, 2, 196, 32\)"),
        (dict(rel_pos_h=torch.zeros(27, 32)), r"\(27, 32\)"),
        (dict(v=torch.zeros(3, 2, 196, 64, dtype=torch.float64)), "float32.*float64"),
    ],
)
def test_invalid_arguments(change: dict, named: str) -> None:
    q, k, v, rel_pos_h, rel_pos_w = make("window", torch.float32)
    arguments = dict(q=q, k=k, v=v, rel_pos_h=rel_pos_h, rel_pos_w=rel_pos_w)
    arguments |= dict(q_size=(14, 14), k_size=(14, 14), scale=0.125)
    with pytest.raises(ValueError, match=named):
        rel_pos_attention(**(arguments | change))
