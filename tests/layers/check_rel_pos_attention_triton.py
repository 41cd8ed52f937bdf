"""The Triton kernels of attention against float64, on a GPU, or in Triton's interpreter if TRITON_INTERPRET=1.

Not collected by itself: the interpreter has to be chosen before triton is imported, and then nothing else compiles, so
test_rel_pos_attention_triton.py runs this file in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from lift_det.layers.rel_pos_attention import triton as kernels

DEVICE = "cpu" if kernels.INTERPRETED else "cuda"
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FP32, FP16, BF16)


class Shape(NamedTuple):
    """The sizes of one call."""

    batch: int
    heads: int
    n_q: int
    k_size: tuple[int, int]
    d: int


SHAPES = {
    "windows": (Shape(3, 1, 196, (14, 14), 64), DTYPES),
    "windows, d 80": (Shape(1, 1, 196, (14, 14), 80), (FP16,)),
    "ragged": (Shape(1, 1, 660, (20, 33), 64), (BF16,)),
    "ragged, batch 3": (Shape(3, 1, 60, (20, 33), 80), (FP32, FP16)),
    "512 pixels": (Shape(1, 1, 1024, (32, 32), 64), (FP16,)),
    "512 pixels, some queries": (Shape(1, 1, 70, (32, 32), 80), (FP32, BF16)),
    "fewer queries than keys": (Shape(3, 2, 9, (5, 6), 64), DTYPES),
    "more queries than keys": (Shape(1, 1, 130, (3, 7), 80), DTYPES),
    "one token": (Shape(2, 1, 1, (1, 1), 64), DTYPES),
    "wider than a tile": (Shape(1, 1, 70, (5, 200), 64), (FP32, BF16)),
    "higher than a tile": (Shape(1, 1, 70, (40, 3), 64), (FP32, BF16)),
    "d 8": (Shape(1, 1, 33, (3, 33), 8), (FP32, BF16)),
    "d 40": (Shape(1, 1, 33, (3, 33), 40), (FP32, BF16)),
    "d 72": (Shape(1, 1, 33, (3, 33), 72), (FP32, BF16)),
    "d 128": (Shape(1, 1, 33, (3, 33), 128), (FP32, BF16)),
}


def reference(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_size: tuple[int, int], scale: float
) -> Tensor:
    """The formula, with all scores in memory."""
    scores = (scale * q @ k.transpose(-1, -2)).unflatten(-1, k_size)  # (B, heads, Nq, k_h, k_w)
    scores = scores + rel_h[..., :, None] + rel_w[..., None, :]
    return scores.flatten(-2).softmax(-1) @ v


def make(shape: Shape, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """q, k, v, rel_h, rel_w, and a gradient of the output; the same numbers whatever the device."""
    batch, heads, n_q, (k_h, k_w), d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((n_q, d), (k_h * k_w, d), (k_h * k_w, d), (n_q, k_h), (n_q, k_w), (n_q, d))
    tensors = [torch.randn(batch, heads, *size, generator=generator).to(DEVICE, dtype) for size in sizes]
    return [tensor.requires_grad_() for tensor in tensors[:5]], tensors[5]


def run(attention: Callable[..., Tensor], shape: Shape, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    """The output and the five gradients."""
    out = attention(*inputs, shape.k_size, shape.d**-0.5)
    names = ("q", "k", "v", "rel_h", "rel_w")
    return {"out": out.detach()} | dict(zip(names, torch.autograd.grad(out, inputs, grad_out), strict=True))


def assert_as_exact_as_eager(found: dict[str, Tensor], shape: Shape, inputs: list[Tensor], grad_out: Tensor) -> None:
    """Twice the error of the formula in the same type, and what fp32 costs inside.

    That is four roundings of the largest value for the output. The gradient of a score is a small difference of
    products of grad_out and v, so for the gradients it is one rounding of the largest sum of such products' sizes.
    """
    eager = run(reference, shape, inputs, grad_out)
    double = [tensor.detach().double().requires_grad_() for tensor in inputs]
    sizes = 4 * double[2].abs().max(), (grad_out.double().abs() @ double[2].abs().transpose(-1, -2)).max()
    for name, expected in run(reference, shape, double, grad_out.double()).items():
        assert found[name].dtype == eager[name].dtype and found[name].shape == expected.shape
        error = (found[name].double() - expected).abs().max()
        bound = 2 * (eager[name].double() - expected).abs().max() + torch.finfo(FP32).eps * sizes[name != "out"]
        assert error <= bound, f"{name}: {error:.2e} > {bound:.2e}"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(shape, dtype, id=f"{name}, {str(dtype).removeprefix('torch.')}")
        for name, (shape, dtypes) in SHAPES.items()
        for dtype in dtypes
    ],
)
def test_as_exact_as_eager(shape: Shape, dtype: torch.dtype) -> None:
    inputs, grad_out = make(shape, dtype)
    assert_as_exact_as_eager(run(kernels.attention, shape, inputs, grad_out), shape, inputs, grad_out)


@pytest.mark.slow
def test_1024_pixels() -> None:
    shape = Shape(1, 1, 4096, (64, 64), 64)
    inputs, grad_out = make(shape, BF16)
    assert_as_exact_as_eager(run(kernels.attention, shape, inputs, grad_out), shape, inputs, grad_out)


def every_configuration() -> list[tuple[str, torch.dtype, kernels.Config]]:
    found = []
    for launch in ("forward", "backward_queries", "backward_keys"):
        for dtype in (FP32, BF16):
            both = kernels.configurations(launch, dtype, 80) + kernels.configurations(launch, dtype, 90)
            found += [(launch, dtype, config) for config in dict.fromkeys(both)]
    return found


@pytest.mark.parametrize(("launch", "dtype", "config"), every_configuration(), ids=str)
@pytest.mark.parametrize("k_size", [(9, 14), (3, 70)], ids=str)
def test_every_configuration(
    launch: str, dtype: torch.dtype, config: kernels.Config, k_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in the place of one kernel, on grids that are no multiple of its tiles."""
    launched = []

    def configurations(name: str, dtype: torch.dtype, architecture: int) -> tuple[kernels.Config, ...]:
        launched.append(name)
        return (config,) if name == launch else original(name, dtype, architecture)

    original = kernels.configurations
    monkeypatch.setattr(kernels, "configurations", configurations)
    monkeypatch.setattr(kernels, "_fastest", {})
    shape = Shape(1, 1, 75, k_size, 80)
    inputs, grad_out = make(shape, dtype)
    found = run(kernels.attention, shape, inputs, grad_out)
    assert launched == ["forward", "backward_queries", "backward_keys"]
    assert_as_exact_as_eager(found, shape, inputs, grad_out)


def test_strides_do_not_matter() -> None:
    """q, k and v are views of a projection, the biases come from einsum, the gradient of a sum has strides of zero."""
    shape = Shape(2, 3, 35, (5, 7), 64)
    qkv = torch.randn(2, 35, 3, 3, 64, device=DEVICE).permute(2, 0, 3, 1, 4)
    rel_h = torch.randn(2, 5, 3, 35, device=DEVICE).permute(0, 2, 3, 1)  # the last dimension is not dense
    rel_w = torch.randn(2, 35, 3, 9, device=DEVICE).transpose(1, 2)[..., 1:8]
    inputs = [tensor.requires_grad_() for tensor in (*qkv, rel_h, rel_w)]
    grad_out = torch.ones((), device=DEVICE).expand(2, 3, 35, 64)
    dense = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in inputs]
    expected = run(kernels.attention, shape, dense, grad_out.contiguous())
    for name, found in run(kernels.attention, shape, inputs, grad_out).items():
        assert torch.equal(found, expected[name]), name
    assert kernels.attention(*inputs, (5, 7), 0.125).transpose(1, 2).is_contiguous()


def test_biases_may_have_another_type() -> None:
    shape = Shape(1, 1, 40, (5, 8), 64)
    inputs, grad_out = make(shape, torch.float16)
    mixed = [*inputs[:3], *(tensor.detach().float().requires_grad_() for tensor in inputs[3:])]
    expected, found = (run(kernels.attention, shape, tensors, grad_out) for tensors in (inputs, mixed))
    assert torch.equal(found["out"], expected["out"]) and torch.equal(found["q"], expected["q"])
    for name in ("rel_h", "rel_w"):
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name].half(), expected[name])


def test_empty_batch() -> None:
    shape = Shape(0, 2, 35, (5, 7), 64)
    inputs, grad_out = make(shape, torch.float32)
    found = run(kernels.attention, shape, inputs, grad_out)
    assert found["out"].shape == found["q"].shape == (0, 2, 35, 64)


def test_operators_keep_the_rules() -> None:
    """Schema, fake implementation, autograd registration, and all of them under torch.compile's tracing."""
    shape = Shape(2, 1, 12, (3, 5), 16)
    inputs, grad_out = make(shape, torch.float32)
    torch.library.opcheck(torch.ops.lift_det.rel_pos_attention_triton, (*inputs, 3, 5, 0.25))
    out, lse = torch.ops.lift_det.rel_pos_attention_triton(*inputs, 3, 5, 0.25)
    assert not lse.requires_grad
    tensors = [tensor.detach() for tensor in (grad_out, *inputs, out, lse)]
    torch.library.opcheck(torch.ops.lift_det.rel_pos_attention_triton_backward, (*tensors, 3, 5, 0.25))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    """In one graph, with the same numbers, as part of a function with other operators in it."""
    shape = Shape(1, 2, 15, (3, 5), 16)
    inputs, grad_out = make(shape, torch.float32)

    def function(*args: Tensor) -> Tensor:
        return 2 * kernels.attention(*args)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found, expected = (run(f, shape, inputs, grad_out) for f in (compiled, function))
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_activation_checkpointing() -> None:
    shape = Shape(1, 2, 15, (3, 5), 16)
    inputs, grad_out = make(shape, torch.float32)

    def function(*args: Tensor) -> Tensor:
        return checkpoint(kernels.attention, *args, use_reentrant=False)

    found, expected = (run(f, shape, inputs, grad_out) for f in (function, kernels.attention))
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_second_derivative_is_refused() -> None:
    shape = Shape(1, 1, 6, (2, 3), 16)
    inputs, grad_out = make(shape, torch.float32)
    out = kernels.attention(*inputs, shape.k_size, 0.25)
    (grad_q,) = torch.autograd.grad(out, inputs[:1], grad_out, create_graph=True)
    with pytest.raises(RuntimeError):
        grad_q.sum().backward()


def test_what_does_not_fit_is_named() -> None:
    (q, k, v, rel_h, rel_w), _ = make(Shape(1, 2, 15, (3, 5), 64), torch.float32)
    with pytest.raises(ValueError, match=r"multiple of 8 up to 128, not 60"):
        kernels.attention(q[..., :60], k[..., :60], v[..., :60], rel_h, rel_w, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"not 136"):
        wide = torch.zeros(1, 2, 15, 136, device=DEVICE)
        kernels.attention(wide, wide, wide, rel_h, rel_w, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"k has to be \(1, 2, 16, 64\) .* 4 x 4, but is \(1, 2, 15, 64\)"):
        kernels.attention(q, k, v, rel_h, rel_w, (4, 4), 1.0)
    with pytest.raises(ValueError, match=r"rel_w has to be \(1, 2, 15, 5\)"):
        kernels.attention(q, k, v, rel_h, rel_h, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"at least one row"):
        kernels.attention(q, k[:, :, :0], v[:, :, :0], rel_h[..., :0], rel_w, (0, 5), 1.0)
    with pytest.raises(ValueError, match=r"q has to be \(B, heads, Nq, d\)"):
        kernels.attention(q[0], k, v, rel_h, rel_w, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"float64"):
        kernels.attention(q.double(), k.double(), v.double(), rel_h, rel_w, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"float16"):
        kernels.attention(q, k.half(), v, rel_h, rel_w, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"rel_h has to be fp16, bf16 or fp32"):
        kernels.attention(q, k, v, rel_h.double(), rel_w, (3, 5), 1.0)
    with pytest.raises(ValueError, match=r"k is on meta"):
        kernels.attention(q, k.to("meta"), v, rel_h, rel_w, (3, 5), 1.0)


@pytest.mark.skipif(kernels.INTERPRETED, reason="the interpreter does not tune")
def test_tuning_keeps_the_fastest() -> None:
    shape = Shape(1, 2, 196, (14, 14), 64)
    inputs, grad_out = make(shape, torch.float16)
    kernels._fastest.clear()
    run(kernels.attention, shape, inputs, grad_out)
    assert {key[0].__name__ for key in kernels._fastest} == {"forward", "backward_queries", "backward_keys"}
    run(kernels.attention, shape._replace(n_q=190), [inputs[0][:, :, :190], *inputs[1:3], inputs[3][:, :, :190],
                                                     inputs[4][:, :, :190]], grad_out[:, :, :190])  # fmt: skip
    assert len(kernels._fastest) == 3


@pytest.mark.skipif(kernels.INTERPRETED, reason="the interpreter's memory means nothing")
def test_memory_is_linear() -> None:
    """At 64 x 64 tokens and 4 heads all scores would be 256 MB in fp32; inputs and gradients are about 25 MB."""
    shape = Shape(1, 4, 4096, (64, 64), 64)
    inputs, grad_out = make(shape, torch.float16)
    run(kernels.attention, shape, inputs, grad_out)  # tuning has a buffer of its own
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(kernels.attention, shape, inputs, grad_out)
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20


def test_output_is_a_mean_of_values() -> None:
    """With equal values everywhere the output is that value, whatever the scores; no gradient reaches the scores."""
    shape = Shape(1, 1, 20, (4, 5), 64)
    inputs, grad_out = make(shape, torch.float32)
    inputs[2] = torch.ones_like(inputs[2]).requires_grad_()
    found = run(kernels.attention, shape, inputs, grad_out)
    assert_close(found["out"], torch.ones_like(found["out"]), atol=1e-6, rtol=0)
    for name in ("q", "k", "rel_h", "rel_w"):
        assert found[name].abs().max() < 1e-4, name
