"""Writes ONNX files and ``torch.export`` programs, and compares them with the model."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from .modules import ExportModule
from .traceable import traceable

#: largest accepted difference from the model, absolute or relative
TOLERANCE = 1e-4
#: of ONNX files; the first that supports antialiased Resize
OPSET = 18
#: largest batch, and largest side in multiples of ``divisibility``, of a file with dynamic sizes
_MAX_DIM = 4096


class ExportError(ValueError):
    """A model cannot be exported as requested."""


@dataclass(frozen=True)
class Comparison:
    """Difference between a file and the model for one batch of images.

    Attributes:
        shape: (N, 3, H, W) of the images.
        absolute: largest absolute difference.
        relative: largest difference of an output, divided by the largest absolute value of that output.
    """

    shape: tuple[int, ...]
    absolute: float
    relative: float

    def __str__(self) -> str:
        batch, _, height, width = self.shape
        return (
            f"{batch} × {height}×{width} pixels: largest difference {self.absolute:.1e} absolute, "
            f"{self.relative:.1e} relative"
        )


def export_onnx(
    module: ExportModule,
    path: str | os.PathLike,
    sizes: Sequence[tuple[int, int]],
    *,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Writes an ONNX file, and compares it in onnxruntime on the CPU with the module.

    Args:
        module: on the CPU, in evaluation mode.
        path: only written, atomically, if the file agrees with the module. It includes metadata. Weights of more than
            1.5 GiB are stored in ``path.data``.
        sizes: (H, W) in pixels to compare on. For a dynamic file, sizes are added until there are three.
        dynamic: whether the file takes images of any size, or only of the size in ``sizes``. The batch size is always
            dynamic.
        tolerance: largest accepted difference, absolute or relative.

    Returns:
        The differences for each size.

    Raises:
        ExportError: the model cannot be exported, or the file does not agree with it.
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: the module does not support a size.
    """
    require_onnx()
    batches = _batches(module, sizes, dynamic)
    size = None if dynamic else tuple(sizes[0])
    exported = torch.onnx.export(
        trace(module, size),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(module.input_names),
        output_names=list(module.output_names),
        verbose=False,
    )
    exported.model.metadata_props.update(module.describe(size))
    return write_compared(path, exported.save, load_onnx, module, batches, tolerance)


def export_program(
    module: ExportModule,
    path: str | os.PathLike,
    sizes: Sequence[tuple[int, int]],
    *,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Writes a ``.pt2`` file, and compares it with the module. See :func:`export_onnx` for arguments and errors.

    ``torch.export.load(path).module()`` loads it without lift_det. The metadata is the extra file ``lift_det.json``.
    """
    batches = _batches(module, sizes, dynamic)
    size = None if dynamic else tuple(sizes[0])
    program, extra_files = trace(module, size), {"lift_det.json": json.dumps(module.describe(size))}
    return write_compared(
        path,
        lambda file: torch.export.save(program, file, extra_files=extra_files),
        lambda file: torch.export.load(file).module(),
        module,
        batches,
        tolerance,
    )


def trace(module: ExportModule, size: tuple[int, int] | None = None) -> ExportedProgram:
    """Traces a module with ``torch.export``, for one size (H, W) in pixels or for any size (None).

    Raises:
        ExportError: the program has custom operators.
        torch._dynamo.exc.UserError: the program depends on the size.
    """
    step = module.divisibility
    # small for speed; with different sides, because torch.export would assume that equal sides are always equal
    example = size or (module.min_size + step, module.min_size + 3 * step)
    inputs = module.inputs(2, example, torch.Generator().manual_seed(0))
    batch = Dim("batch", max=_MAX_DIM)
    height, width = (Dim(name, min=module.min_size // step, max=_MAX_DIM) for name in ("h", "w"))
    shapes = tuple(
        {0: batch} if size else {0: batch, 2: step // stride * height, 3: step // stride * width}
        for stride in module.input_strides
    )
    with torch.no_grad():
        program = torch.export.export(traceable(module), inputs, dynamic_shapes=shapes)
    targets = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    foreign = sorted(str(target) for target in targets if target.namespace not in ("aten", "prims"))
    if foreign:
        raise ExportError(f"The model has custom operators, which cannot be exported: {', '.join(foreign)}.")
    return program


def require_onnx() -> None:
    """Raises ImportError if a package for ONNX files is not installed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'ONNX files need {", ".join(missing)}: run pip install "lift_det[export]". A .pt2 file only needs torch.'
        )


def load_onnx(path: str | os.PathLike) -> Callable[..., list[Tensor]]:
    """Loads an ONNX file in onnxruntime on the CPU, and returns a function of tensors."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read on import by onnxruntime >= 1.32
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
        return [torch.from_numpy(array) for array in arrays]

    return run


def write_compared(
    path: str | os.PathLike,
    save: Callable[[Path], Any],
    load: Callable[[Path], Callable[..., Any]],
    model: Callable[..., Any],
    batches: Sequence[Sequence[Tensor]],
    tolerance: float,
) -> list[Comparison]:
    """Saves a file to a temporary directory, loads it, compares it with the model, and moves it to ``path``.

    The model and the loaded file are called with the tensors of each batch. The first tensor has the images.

    Raises:
        ExportError: the file cannot be run, or does not agree with the model.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        file = Path(folder) / path.name
        save(file)
        with torch.no_grad():
            try:
                exported = load(file)
                outputs = [exported(*inputs) for inputs in batches]
            except Exception as error:  # errors of onnxruntime and torch.export have no common class
                raise ExportError(
                    f"The exported file cannot be run: {error}. Try a file for one size: --fixed (dynamic=False)."
                ) from error
            results = [_compare(a, model(*inputs), inputs[0]) for a, inputs in zip(outputs, batches, strict=True)]
        wrong = [result for result in results if not min(result.absolute, result.relative) <= tolerance]
        if wrong:
            lines = "".join(f"\n  {result}" for result in wrong)
            raise ExportError(f"'{path}' differs from the model by more than {tolerance:g} and was not kept:{lines}")
        # path.data is moved first, so that path never exists without it
        for written in sorted(Path(folder).iterdir(), key=lambda written: written.name == path.name):
            os.replace(written, path.with_name(written.name))
    return results


def _compare(outputs: Any, expected: Any, images: Tensor) -> Comparison:
    absolute, relative = torch.zeros(2)
    for a, b in zip(_tensors(outputs), _tensors(expected), strict=True):
        if a.shape != b.shape:
            raise ExportError(
                f"Images {tuple(images.shape)}: an output of the file is {tuple(a.shape)}, expected {tuple(b.shape)}."
            )
        if b.numel():  # a detector may find nothing
            a, b = a.float(), b.float()
            difference = (a - b).abs().max()
            # torch's maximum keeps NaN
            absolute = torch.maximum(absolute, difference)
            relative = torch.maximum(relative, difference / b.abs().max().clamp(min=1e-30))
    return Comparison(tuple(images.shape), absolute.item(), relative.item())


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return list(outputs.values() if isinstance(outputs, dict) else outputs)


def _batches(module: ExportModule, sizes: Sequence[tuple[int, int]], dynamic: bool) -> list[tuple[Tensor, ...]]:
    """Returns random inputs in batches of one and two."""
    if dynamic and module.fixed_size_reason:
        raise ExportError(f"{module.fixed_size_reason}. Export it for one size: --fixed (dynamic=False).")
    if not dynamic and len(sizes) != 1:
        raise ValueError(f"Expected one size for a file with a fixed size, got {list(sizes)}.")
    step, smallest = module.divisibility, module.min_size if dynamic else module.divisibility
    for height, width in sizes:
        if height % step or width % step or min(height, width) < smallest:
            raise ValueError(f"{height}×{width} pixels: expected multiples of {step} from {smallest}.")
    sizes = [tuple(size) for size in sizes]
    if dynamic:
        height, width = sizes[0]
        others = [(smallest, width), (height, width + 2 * step), (smallest, width + 2 * step)]
        sizes = list(dict.fromkeys([*sizes, *others]))[: max(3, len(set(sizes)))]
    else:
        sizes = 2 * sizes
    generator = torch.Generator().manual_seed(0)
    return [module.inputs(1 + i % 2, size, generator) for i, size in enumerate(sizes)]
