"""ONNX files, compared in onnxruntime with the models that they are made from."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .comparison import TOLERANCE, Comparison, ExportError, batches_to_check, compare, require_agreement
from .modules import DetectorModule, ExportModule
from .program import trace
from .staging import staged

#: of the files: the first whose Resize smooths where it makes smaller
OPSET = 18
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_onnx() -> None:
    """
    Raises:
        ImportError: a package that ONNX needs is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX files need {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            'pip install "lift_det[export]". A .pt2 file needs nothing but torch.'
        )


def export_onnx(
    module: ExportModule,
    path: str | os.PathLike,
    sizes: Sequence[tuple[int, int]],
    *,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
    opset: int = OPSET,
) -> list[Comparison]:
    """Writes an ONNX file and compares it, in onnxruntime on the CPU, with the module.

    Args:
        module: on the CPU, in evaluation mode.
        path: the file; written whole once it agrees, or not at all. Weights of more than 1.5 GiB lie beside it in
            ``path.data``. Its ``metadata_props`` are ``module.describe()``.
        sizes: (H, W) in pixels, on which it is compared; others are added until there are three.
        dynamic: whether it takes any size, or the one in ``sizes``. Batches may have any size in both cases.
        tolerance: see :meth:`Comparison.agrees`.
        opset: of ONNX, 18 or later.

    Returns:
        How near the file is to the module, for each size.

    Raises:
        ExportError: it cannot be exported so, or does not agree.
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: a size that the module does not take.
    """
    require_onnx()
    batches = batches_to_check(module, sizes, dynamic)
    size = None if dynamic else tuple(sizes[0])
    exported = torch.onnx.export(
        trace(module, size),
        dynamo=True,
        opset_version=opset,
        input_names=list(module.input_names),
        output_names=list(module.output_names),
        verbose=False,
    )
    exported.model.metadata_props.update({**module.describe(size), "opset": str(opset)})
    with staged(path) as file:
        exported.save(file)
        results = check_onnx(file, module, batches)
        require_agreement(results, tolerance)
    return results


def check_onnx(
    path: str | os.PathLike, module: ExportModule | DetectorModule, batches: Sequence[Sequence[Tensor]]
) -> list[Comparison]:
    """Compares an ONNX file, in onnxruntime on the CPU, with the module that it was made from.

    Args:
        path: the file.
        module: the module.
        batches: the inputs of each comparison.

    Raises:
        ExportError: onnxruntime cannot run it.
    """
    # from 1.32 on it reports to its makers unless told not to before it is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    failures = (
        states.Fail,
        states.InvalidArgument,
        states.InvalidGraph,
        states.NotImplemented,
        states.RuntimeException,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()  # the times are to be compared
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise ExportError(f"onnxruntime {onnxruntime.__version__} cannot load the exported file: {error}") from error

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        named = dict(zip(module.input_names, (x.numpy() for x in inputs), strict=True))
        try:
            return [torch.from_numpy(x) for x in session.run(list(module.output_names), named)]
        except failures as error:
            size = tuple(inputs[0].shape[-2:])
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} cannot run the exported file on images of {size[0]}×{size[1]} "
                f"pixels: {error}. Where it was to take any size, export it for one: --fixed (dynamic=False)."
            ) from error

    return compare(module, module.output_names, run, batches)
