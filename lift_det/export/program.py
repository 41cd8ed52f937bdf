"""``torch.export``: programs of torch's own operators, which load without lift_det."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .comparison import (
    TOLERANCE,
    Comparison,
    ExportError,
    batches_to_check,
    compare,
    outputs_of,
    require_agreement,
)
from .modules import ExportModule
from .staging import staged
from .traceable import traceable


def trace(module: ExportModule, size: tuple[int, int] | None = None) -> ExportedProgram:
    """Traces a module for any size, or for one.

    Args:
        module: on the CPU, in evaluation mode.
        size: (H, W) in pixels; None is any.

    Raises:
        ExportError: it needs operators that are not torch's own.
        torch._dynamo.exc.UserError: torch.export finds that it depends on the size.
    """
    if size is None:
        # small, for speed, and of two lengths, so that no side is taken for the other
        step, smallest = module.divisibility, module.min_size
        example = (smallest, smallest + step)
        if module.max_size is None:
            example = (smallest + step, smallest + 3 * step)
    else:
        example = size
    inputs = module.inputs(2, example, torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(traceable(module), inputs, dynamic_shapes=module.dynamic_shapes(size))
    targets = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    foreign = sorted(str(target) for target in targets if target.namespace not in ("aten", "prims"))
    if foreign:
        raise ExportError(f"The model has operators that only their own package can run: {', '.join(foreign)}.")
    return program


def export_program(
    module: ExportModule,
    path: str | os.PathLike,
    sizes: Sequence[tuple[int, int]],
    *,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Writes a ``.pt2``, which ``torch.export.load(path).module()`` reads without lift_det, and compares it.

    Args:
        module: on the CPU, in evaluation mode.
        path: the file; written whole once it agrees, or not at all. Its metadata is the extra file ``lift_det.json``.
        sizes: (H, W) in pixels, on which it is compared; others are added until there are three.
        dynamic: whether it takes any size, or the one in ``sizes``. Batches may have any size in both cases.
        tolerance: see :meth:`Comparison.agrees`.

    Returns:
        How near the file, loaded again, is to the module, for each size.

    Raises:
        ExportError: it cannot be exported so, or does not agree.
        ValueError: a size that the module does not take.
    """
    batches = batches_to_check(module, sizes, dynamic)
    size = None if dynamic else tuple(sizes[0])
    program = trace(module, size)
    with staged(path) as file:
        torch.export.save(program, file, extra_files={"lift_det.json": json.dumps(module.describe(size))})
        results = check_program(file, module, batches)
        require_agreement(results, tolerance)
    return results


def check_program(
    path: str | os.PathLike, module: ExportModule, batches: Sequence[Sequence[Tensor]]
) -> list[Comparison]:
    """Compares a ``.pt2`` with the module that it was made from.

    Args:
        path: the file.
        module: the module.
        batches: the inputs of each comparison.

    Raises:
        ExportError: the program refuses a size.
    """
    program = torch.export.load(os.fspath(path)).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        try:
            return outputs_of(program(*inputs))
        except (AssertionError, RuntimeError) as error:  # how the guards of a program speak
            size = tuple(inputs[0].shape[-2:])
            raise ExportError(
                f"The exported program does not take images of {size[0]}×{size[1]} pixels: {error}. Where it "
                "was to take any size, export it for one: --fixed (dynamic=False)."
            ) from error

    return compare(module, module.output_names, run, batches)
