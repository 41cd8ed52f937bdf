"""Checks of the Triton kernels, on a GPU or, with TRITON_INTERPRET=1, in Triton's interpreter.

test_triton.py runs this file in its own process, because the interpreter has to be chosen before triton is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from lift_det.layers import mask_to_rle, paste_masks, rel_pos_attention
from lift_det.layers.rel_pos_attention import triton as kernels
from tests.layers.mask_cases import Case, random_cases, rounding_decides, smooth_masks

INTERPRETED = kernels.INTERPRETED
DEVICE = "cpu" if INTERPRETED else "cuda"
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAMES = ("q", "k", "v", "rel_h", "rel_w")


class Shape(NamedTuple):
    batch: int
    heads: int
    n_q: int
    k_size: tuple[int, int]
    d: int


# Grids of several tiles, most of which neither rows nor columns fill.
SHAPES = {
    "windows": (Shape(1, 2, 50, (14, 14), 64), (FP32, FP16, BF16)),
    "ragged": (Shape(1, 1, 40, (20, 33), 80), (FP16,)),
    "several heads": (Shape(3, 2, 9, (5, 6), 64), (FP16,)),
    "more queries than keys": (Shape(1, 1, 130, (3, 7), 80), (BF16,)),
    "one token": (Shape(2, 1, 1, (1, 1), 64), (BF16,)),
    "wider than a tile": (Shape(1, 1, 70, (5, 200), 64), (BF16,)),
    "higher than a tile": (Shape(1, 1, 20, (40, 3), 64), (FP32,)),
    "d 8": (Shape(1, 1, 20, (3, 20), 8), (FP32,)),
    "d 72": (Shape(1, 1, 20, (3, 20), 72), (FP32,)),
    "d 128": (Shape(1, 1, 20, (3, 20), 128), (BF16,)),
}
SMALL = Shape(1, 1, 6, (2, 3), 16)


def attention(*args) -> Tensor:
    return torch.ops.lift_det.rel_pos_attention_triton(*args)[0]


def formula(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, k_size: tuple[int, int], scale: float
) -> Tensor:
    scores = (scale * q @ k.transpose(-1, -2)).unflatten(-1, k_size)  # (B, heads, Nq, k_h, k_w)
    scores = scores + rel_h[..., :, None] + rel_w[..., None, :]
    return scores.flatten(-2).softmax(-1) @ v


def make(shape: Shape, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """q, k, v, rel_h, rel_w, and a gradient of the output."""
    batch, heads, n_q, (k_h, k_w), d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((n_q, d), (k_h * k_w, d), (k_h * k_w, d), (n_q, k_h), (n_q, k_w), (n_q, d))
    tensors = [torch.randn(batch, heads, *size, generator=generator).to(DEVICE, dtype) for size in sizes]
    return [tensor.requires_grad_() for tensor in tensors[:5]], tensors[5]


def run(function: Callable[..., Tensor], shape: Shape, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    """The output and the five gradients."""
    out = function(*inputs, shape.k_size, shape.d**-0.5)
    return {"out": out.detach()} | dict(zip(NAMES, torch.autograd.grad(out, inputs, grad_out), strict=True))


def check(shape: Shape, dtype: torch.dtype) -> None:
    """Errors are at most twice those of the formula in the same dtype, plus roundings of fp32.

    That is four roundings of the largest value for the output. The gradient of a score is a small difference of
    products of grad_out and v; the bound is one rounding of the largest sum of their absolute values.
    """
    inputs, grad_out = make(shape, dtype)
    found, eager = run(attention, shape, inputs, grad_out), run(formula, shape, inputs, grad_out)
    double = [tensor.detach().double().requires_grad_() for tensor in inputs]
    sizes = 4 * double[2].abs().max(), (grad_out.double().abs() @ double[2].abs().transpose(-1, -2)).max()
    for name, expected in run(formula, shape, double, grad_out.double()).items():
        assert found[name].dtype == dtype and found[name].shape == expected.shape
        error = (found[name].double() - expected).abs().max()
        bound = 2 * (eager[name].double() - expected).abs().max() + torch.finfo(FP32).eps * sizes[name != "out"]
        assert error <= bound, f"{name}: {error:.2e} > {bound:.2e}"


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, (_, types) in SHAPES.items() for dtype in types])
def test_errors(name: str, dtype: torch.dtype) -> None:
    check(SHAPES[name][0], dtype)


CONFIGURATIONS = [
    (launch, dtype, config)
    for launch in ("forward", "backward_queries", "backward_keys")
    for dtype in (FP32, BF16)
    for config in dict.fromkeys(
        config for architecture in (80, 90) for config in kernels.configurations(launch, dtype, architecture)
    )
]


@pytest.mark.parametrize(("launch", "dtype", "config"), CONFIGURATIONS, ids=str)
def test_every_configuration(launch: str, dtype: torch.dtype, config: kernels.Config, monkeypatch) -> None:
    """On a grid that is not a multiple of its tiles."""
    original = kernels.configurations
    monkeypatch.setattr(kernels, "configurations", lambda name, *a: (config,) if name == launch else original(name, *a))
    monkeypatch.setattr(kernels, "_fastest", {})
    check(Shape(1, 1, 75, (5, 38), 80), dtype)


def test_strides_do_not_matter() -> None:
    shape = Shape(2, 2, 6, (2, 3), 64)
    qkv = torch.randn(2, 6, 3, 2, 64, device=DEVICE).permute(2, 0, 3, 1, 4)
    rel_h = torch.randn(2, 2, 2, 6, device=DEVICE).permute(0, 2, 3, 1)  # the last dimension is not contiguous
    rel_w = torch.randn(2, 6, 2, 5, device=DEVICE).transpose(1, 2)[..., 1:4]
    inputs = [tensor.requires_grad_() for tensor in (*qkv, rel_h, rel_w)]
    grad_out = torch.ones((), device=DEVICE).expand(2, 2, 6, 64)
    dense = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in inputs]
    expected = run(attention, shape, dense, grad_out.contiguous())
    for name, found in run(attention, shape, inputs, grad_out).items():
        assert torch.equal(found, expected[name]), name
    assert attention(*inputs, shape.k_size, 0.125).transpose(1, 2).is_contiguous()


def test_empty_batch() -> None:
    inputs, _ = make(SMALL._replace(batch=0), FP32)
    assert attention(*inputs, SMALL.k_size, 0.25).shape == (0, 1, 6, 16)


def test_operators_pass_opcheck() -> None:
    inputs, grad_out = make(SMALL, FP32)
    torch.library.opcheck(torch.ops.lift_det.rel_pos_attention_triton, (*inputs, SMALL.k_size, 0.25))
    out, lse = torch.ops.lift_det.rel_pos_attention_triton(*inputs, SMALL.k_size, 0.25)
    assert not lse.requires_grad
    tensors = [tensor.detach() for tensor in inputs]
    arguments = (grad_out, tensors, out.detach(), lse, SMALL.k_size, 0.25)
    torch.library.opcheck(torch.ops.lift_det.rel_pos_attention_triton_backward, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_and_checkpointed(dynamic: bool) -> None:
    """In one graph with other operators, and recomputed in the backward pass."""
    inputs, grad_out = make(SMALL, FP32)

    def doubled(*args: Tensor) -> Tensor:
        return 2 * attention(*args)

    compiled = torch.compile(doubled, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = run(doubled, SMALL, inputs, grad_out)
    for function in (compiled, lambda *args: checkpoint(doubled, *args, use_reentrant=False)):
        found = run(function, SMALL, inputs, grad_out)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_public_call() -> None:
    """Equal to the reference, and unsupported inputs raise."""
    q, k, v = torch.randn(3, 1, 2, 15, 16, device=DEVICE)
    tables = torch.randn(5, 16, device=DEVICE), torch.randn(9, 16, device=DEVICE)
    found, expected = (
        rel_pos_attention(q, k, v, *tables, (3, 5), (3, 5), 0.25, name) for name in ("triton", "reference")
    )
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for width, dtype, named in ((60, FP32, "60"), (136, FP32, "136"), (64, torch.float64, "float64")):
        x, table = (torch.zeros(shape, dtype=dtype, device=DEVICE) for shape in ((1, 2, 4, width), (3, width)))
        with pytest.raises(RuntimeError, match=named):
            rel_pos_attention(x, x, x, table, table, (2, 2), (2, 2), 1.0, "triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not tune, and its memory means nothing")
def test_tuning_and_memory() -> None:
    """At 64 x 64 tokens and 4 heads, all scores would be 256 MB in fp32; inputs and gradients are about 25 MB."""
    shape = Shape(1, 4, 4096, (64, 64), 64)
    check(shape, BF16)
    inputs, grad_out = make(shape, FP16)
    kernels._fastest.clear()
    run(attention, shape, inputs, grad_out)
    assert {key[0].__name__ for key in kernels._fastest} == {"forward", "backward_queries", "backward_keys"}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(attention, shape, inputs, grad_out)
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20


@pytest.mark.skipif(not INTERPRETED, reason="test_mask_paste.py compares with detectron2 on a GPU")
def test_masks_equal_the_torch_backend() -> None:
    cases = [
        case._replace(masks=case.masks[:2], boxes=case.boxes[:2])
        for case in random_cases(200, seed=3)
        if not rounding_decides(case) and case.image_shape[0] * case.image_shape[1] < 5_000
    ]
    # up to the image's edges, where a run continues in the next column; one column; one row; half precision
    boxes = torch.tensor([[0.0, 0, 45, 40], [-9, 10, 30, 50], [20, -20, 50, 31], [44, 30, 45, 40], [0, 0, 45, 1]])
    masks = smooth_masks(5, 28, 30, torch.Generator().manual_seed(0))
    masks[0] = 1
    cases += [Case(masks, boxes, (40, 45), 0.5), Case(masks[:2].half(), boxes[:2], (40, 45), 0.3)]
    for case in cases:
        expected = case._replace(masks=case.masks.float())  # the kernels compute in float32
        assert torch.equal(paste_masks(*case, "triton"), paste_masks(*expected))
        assert mask_to_rle(*case, "triton") == mask_to_rle(*expected)
    assert len(cases) >= 6
