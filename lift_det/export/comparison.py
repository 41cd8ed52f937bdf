"""Comparison of an exported file with the model that it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .modules import ExportModule

#: the largest difference, absolute or relative, with which a file is kept
TOLERANCE = 1e-4


class ExportError(ValueError):
    """A model cannot be exported as requested; the message says what to do."""


@dataclass(frozen=True)
class Comparison:
    """How far a file is from the model on one batch of images.

    Attributes:
        shape: of the images, (N, 3, H, W).
        absolute: the largest difference of any number.
        relative: the largest difference of an output by its own largest absolute value; the worst of the outputs.
        seconds: of one run of the file.
        torch_seconds: of one run of the model.
    """

    shape: tuple[int, ...]
    absolute: float
    relative: float
    seconds: float
    torch_seconds: float

    def agrees(self, tolerance: float = TOLERANCE) -> bool:
        """Whether either difference is at most ``tolerance``: numbers of hundreds are no more exact in fp32."""
        return self.absolute <= tolerance or self.relative <= tolerance

    def __str__(self) -> str:
        batch, _, height, width = self.shape
        return (
            f"{batch} × {height}×{width} pixels: largest difference {self.absolute:.1e} absolute, {self.relative:.1e} "
            f"relative; {self.seconds:.2f} s beside torch's {self.torch_seconds:.2f} s"
        )


def compare(
    module: nn.Module,
    output_names: Sequence[str],
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    batches: Sequence[Sequence[Tensor]],
) -> list[Comparison]:
    """Runs a file and the model it was made from on the same inputs.

    Args:
        module: the model, which runs as it always does.
        output_names: of its outputs, for messages.
        run: takes the inputs and gives the outputs, in the module's order.
        batches: the inputs of each run, images first.

    Raises:
        ExportError: the outputs have other shapes.
    """
    results = []
    for inputs in tqdm(batches, desc="comparing", leave=False):
        with torch.no_grad():
            start = time.perf_counter()
            expected = outputs_of(module(*inputs))
            middle = time.perf_counter()
            given = run(inputs)
            end = time.perf_counter()
        shape = tuple(inputs[0].shape)
        for name, a, b in zip(output_names, given, expected, strict=True):
            if a.shape != b.shape:
                raise ExportError(
                    f"The file gives {name} of {tuple(a.shape)} where the model gives {tuple(b.shape)}, for images of "
                    f"{tuple(shape)}."
                )
        # tensors, because Python's max loses what is not a number; a detector may have found nothing
        pairs = [(a.float(), b.float()) for a, b in zip(given, expected, strict=True) if b.numel()]
        absolute = torch.stack([torch.zeros(()), *((a - b).abs().max() for a, b in pairs)])
        largest = torch.stack([torch.ones(()), *(b.abs().max() for _, b in pairs)])
        relative = (absolute / largest.clamp(min=1e-30)).max().item()
        results.append(Comparison(shape, absolute.max().item(), relative, end - middle, middle - start))
    return results


def sizes_to_check(
    module: ExportModule, sizes: Sequence[tuple[int, int]], dynamic: bool
) -> list[tuple[int, tuple[int, int]]]:
    """(batch, (H, W)) of the comparisons: the sizes, and others around the first until there are three.

    For one size (not ``dynamic``) it is that size, with a batch of one and of two.

    Raises:
        ValueError: a size that is not taken, several for a file of one, or any for a model that can have only one.
    """
    if dynamic and module.fixed_only:
        raise ExportError(f"{module.fixed_only}. Export it for one size: --fixed (dynamic=False).")
    for size in sizes:
        module.check_size(size, dynamic)
    if not dynamic:
        if len(sizes) != 1:
            raise ValueError(f"A file for a fixed size has one, not {len(sizes)}.")
        return [(1, tuple(sizes[0])), (2, tuple(sizes[0]))]
    height, width = sizes[0]
    step = module.divisibility
    # smaller and larger ones, which are no squares
    shrunk = max(module.min_size, int(0.75 * height / step) * step)
    grown = math.ceil(1.25 * width / step) * step
    grown = min(module.max_size, grown) if module.max_size else grown
    candidates = [(shrunk, width), (height, grown), (shrunk, grown), (module.min_size, width)]
    chosen = list(dict.fromkeys(tuple(size) for size in sizes))
    for size in candidates:
        if len(chosen) < 3 and size not in chosen:
            chosen.append(size)
    return [(1 + i % 2, size) for i, size in enumerate(chosen)]


def batches_to_check(module: ExportModule, sizes: Sequence[tuple[int, int]], dynamic: bool) -> list[tuple[Tensor, ...]]:
    """Random inputs of :func:`sizes_to_check`."""
    generator = torch.Generator().manual_seed(0)
    return [module.inputs(batch, size, generator) for batch, size in sizes_to_check(module, sizes, dynamic)]


def require_agreement(results: Sequence[Comparison], tolerance: float) -> None:
    """
    Raises:
        ExportError: one of them is too far from the model.
    """
    wrong = [result for result in results if not result.agrees(tolerance)]
    if wrong:
        lines = "".join(f"\n  {result}" for result in wrong)
        raise ExportError(
            f"The exported file does not give what the model gives, to within {tolerance:g}; it was not kept:{lines}"
        )


def outputs_of(result: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> list[Tensor]:
    """What a module gives, in order."""
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, dict) else result)
