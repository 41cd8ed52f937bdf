"""Attention with relative positions: the formula against detectron2's own code, the backends against the formula."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling.backbone.utils import add_decomposed_rel_pos
from torch import Tensor
from torch.testing import assert_close

from lift_det.layers import rel_pos_attention
from lift_det.layers.rel_pos_attention import reference, sdpa
from lift_det.layers.rel_pos_attention.bias import relative_vectors

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {
    "blocked": sdpa.blocked_attention,
    "masked": sdpa.masked_attention,
    "widened": sdpa.widened_attention,
}
# batch, heads, queries' grid, keys' grid, width
SHAPES = {
    "window": (3, 2, (14, 14), (14, 14), 64),
    "ragged": (1, 2, (20, 33), (20, 33), 64),
    "huge": (1, 1, (9, 31), (9, 31), 80),
    "one token": (2, 1, (1, 1), (1, 1), 8),
    "one row": (1, 3, (1, 40), (1, 40), 16),
    "more keys": (2, 2, (5, 6), (10, 12), 16),
    "more queries": (2, 2, (8, 6), (4, 3), 16),
}


def make(shape: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k and v as views of one projection, as a ViT has them, and tables that matter."""
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("table_length", [None, 7])
def test_the_formula_is_detectron2s(shape: str, table_length: int | None) -> None:
    batch, heads, q_size, k_size, width = SHAPES[shape]
    q, k, v, table_h, table_w = make(shape, torch.float32)
    if table_length:  # of a model for another size, which is interpolated
        table_h, table_w = torch.randn(2, table_length, width)
    q_, k_, v_ = (x.flatten(0, 1) for x in (q, k, v))
    scores = (q_ * width**-0.5) @ k_.transpose(-2, -1)
    scores = add_decomposed_rel_pos(scores, q_, table_h, table_w, q_size, k_size)
    expected = (scores.softmax(dim=-1) @ v_).unflatten(0, (batch, heads))
    assert_close(run("reference", (q, k, v, table_h, table_w), shape), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_forms_are_exact(form: str, shape: str) -> None:
    """In fp64, where a wrong term could not pass for rounding: outputs and all five gradients."""
    inputs = make(shape)
    _, _, q_size, k_size, width = SHAPES[shape]
    q, k, v, table_h, table_w = inputs
    rows = relative_vectors(table_h, q_size[0], k_size[0])
    columns = relative_vectors(table_w, q_size[1], k_size[1])
    out = FORMS[form](q, k, v, rows, columns, width**-0.5)
    expected = reference.attention(q, k, v, rows, columns, width**-0.5)
    assert_close(out, expected, atol=1e-12, rtol=1e-12)
    for got, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        assert_close(got, wanted, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("budget", [1, 300, 40_000, 10**9])
def test_any_cut_into_blocks_gives_the_same(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """One row at a time, some rows, some heads, everything."""
    inputs = make("window")
    inputs = tuple(x.detach()[:, :, :30] if i < 3 else x.detach() for i, x in enumerate(inputs))
    inputs = tuple(x.requires_grad_() for x in inputs)
    arguments = (*inputs, (5, 6), (5, 6), 0.125)
    expected = rel_pos_attention(*arguments, implementation="reference")
    monkeypatch.setattr(sdpa, "_BLOCK_SCORES", budget)
    out = rel_pos_attention(*arguments, implementation="sdpa")
    assert_close(out, expected, atol=1e-12, rtol=1e-12)
    for got, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        assert_close(got, wanted, atol=1e-11, rtol=1e-10)


def test_blocks_cover_every_score_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "_BLOCK_SCORES", 1000)
    for shape, keys in (((5, 3, 7, 4), 11), ((5, 3, 7, 4), 90), ((2, 3, 50, 4), 90), ((2, 3, 50, 4), 5000)):
        q, k = torch.zeros(shape), torch.zeros(*shape[:2], keys, 4)
        seen = torch.zeros(shape[:3])
        for heads in sdpa._groups_of_heads(q, k):
            for r in sdpa._pieces(shape[2], sdpa._queries_at_once(q, k)):
                block = seen[(*heads, r)]
                block += 1
                assert block.numel() * keys <= 1000 or block.numel() == 1
        assert torch.equal(seen, torch.ones(shape[:3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["window", "ragged", "huge"])
def test_errors_are_the_dtypes_own(shape: str, dtype: torch.dtype) -> None:
    """Against fp64 no further away than twice what the formula itself is, computed in that dtype."""
    exact_inputs = tuple(x.detach().to(dtype).double().requires_grad_() for x in make(shape))
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in exact_inputs)
    exact, out, eager = (
        run("reference", exact_inputs, shape),
        run("sdpa", inputs, shape),
        run("reference", inputs, shape),
    )

    def error(got: Tensor, wanted: Tensor) -> float:
        return ((got.double() - wanted).norm() / wanted.norm()).item()

    slack = 4 * torch.finfo(dtype).eps
    assert error(out, exact) <= 2 * error(eager, exact) + slack
    pairs = zip(gradients(out, inputs), gradients(eager, inputs), gradients(exact, exact_inputs), strict=True)
    for ours, eagers, exacts in pairs:
        assert error(ours, exacts) <= 2 * error(eagers, exacts) + slack


def test_passes_torchs_checks_of_an_operator() -> None:
    """Schema, fake implementations, autograd registration, and tracing with shapes that are not known."""
    inputs = [x.detach()[:, :, :6] if x.dim() == 4 else x.detach() for x in make("window", torch.float32)]
    rows, columns = relative_vectors(inputs[3], 2, 2), relative_vectors(inputs[4], 3, 3)
    arguments = tuple(x.clone().requires_grad_() for x in (*inputs[:3], rows, columns))
    torch.library.opcheck(torch.ops.lift_det.rel_pos_attention_blocked, (*arguments, 0.125))


def test_under_autocast_as_torchs_own_attention() -> None:
    inputs = make("window", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = run("sdpa", inputs, "window")
        wanted = run("sdpa", tuple(x.detach().bfloat16() for x in inputs), "window")
    assert out.dtype == torch.bfloat16
    assert_close(out, wanted, atol=0.02, rtol=0.02)  # the tables are rounded once or not before they are looked up
    grads = gradients(out, inputs)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_memory_is_linear_in_tokens() -> None:
    """What is kept for the backward, with four times the tokens: four times as much, where the scores take 16 times."""

    def kept(implementation: str, side: int) -> int:
        bytes_of: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            bytes_of[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        q, k, v = torch.randn(3, 1, 2, side * side, 16, requires_grad=True)
        table = torch.randn(2 * side - 1, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            rel_pos_attention(q, k, v, table, table, (side, side), (side, side), 0.25, implementation)
        return sum(bytes_of.values())

    assert kept("sdpa", 32) < 4.2 * kept("sdpa", 16)
    assert kept("reference", 32) > 12 * kept("reference", 16)


def test_auto_is_sdpa_on_the_cpu() -> None:
    inputs = make("window", torch.float32)
    assert torch.equal(run("auto", inputs, "window"), run("sdpa", inputs, "window"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(implementation="flash"), "implementation is 'flash'.*reference, sdpa, triton"),
        (dict(q_size=(14, 13)), r"grid of 14×13.*\(B, heads, 182, d\).*got q \(3, 2, 196, 64\)"),
        (dict(k=torch.zeros(3, 2, 196, 32)), r"k \(3, 2, 196, 32\)"),
        (dict(rel_pos_h=torch.zeros(27, 32)), r"\(L, 64\) for heads of 64 channels; got \(27, 32\)"),
        (dict(v=torch.zeros(3, 2, 196, 64, dtype=torch.float64)), "one floating dtype; got torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    names = ("q", "k", "v", "rel_pos_h", "rel_pos_w")
    arguments = dict(zip(names, make("window", torch.float32), strict=True))
    arguments |= dict(q_size=(14, 14), k_size=(14, 14), scale=0.125)
    with pytest.raises(ValueError, match=message):
        rel_pos_attention(**(arguments | change))


def test_without_triton_auto_runs_and_triton_says_so() -> None:
    source = """
import sys
sys.modules["triton"] = None
import torch
from lift_det.layers import rel_pos_attention
x, table = torch.randn(1, 1, 4, 8), torch.randn(3, 8)
assert rel_pos_attention(x, x, x, table, table, (2, 2), (2, 2), 1.0).shape == (1, 1, 4, 8)
try:
    rel_pos_attention(x, x, x, table, table, (2, 2), (2, 2), 1.0, "triton")
except RuntimeError as error:
    assert "pip install triton" in str(error)
else:
    raise SystemExit("no error")
"""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
    process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
