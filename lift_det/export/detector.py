"""A whole detector as ONNX: one image of one size, through torch's older exporter.

torch.export does not trace detectron2's boxes, whose number depends on the image. ``torch.jit.trace`` follows them.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from torch import Tensor

from .comparison import TOLERANCE, Comparison, require_agreement
from .modules import DetectorModule
from .onnx_file import OPSET, check_onnx, require_onnx
from .staging import staged
from .traceable import traceable


def export_detector(
    module: DetectorModule,
    path: str | os.PathLike,
    images: Sequence[Tensor],
    *,
    tolerance: float = TOLERANCE,
    opset: int = OPSET,
) -> list[Comparison]:
    """Writes a whole detector as ONNX and compares it, in onnxruntime on the CPU, with the module.

    Args:
        module: on the CPU, in evaluation mode.
        path: the file; written whole once it agrees, or not at all.
        images: each (1, 3, H, W), all of the one size that the file will take. It is traced on that in which most is
            found and compared on all, number for number.
        tolerance: see :meth:`Comparison.agrees`.
        opset: of ONNX, 18 or later.

    Returns:
        How near the file is to the module, for each image.

    Raises:
        ExportError: it does not agree, or finds another number of objects.
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: no images, of several sizes, or none in which the model finds anything.
    """
    require_onnx()
    import onnx

    if not images or any(image.shape != images[0].shape or image.shape[0] != 1 for image in images):
        raise ValueError(f"Expected images (1, 3, H, W) of one size, got {[tuple(image.shape) for image in images]}.")
    with torch.no_grad():
        found = [len(module(image)[0]) for image in images]
        if not any(found):
            raise ValueError("The model finds nothing in these images, so that nothing could be compared: name others.")
        # traced where there is something to trace
        example = images[found.index(max(found))]
        buffer = io.BytesIO()
        with _antialiased_resize(opset), patch_builtin_len(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each size that becomes a constant, which is meant
            torch.onnx.export(
                traceable(module),
                (example,),
                buffer,
                dynamo=False,
                opset_version=opset,
                input_names=list(module.input_names),
                output_names=list(module.output_names),
                dynamic_axes={name: {0: "objects"} for name in module.output_names},
            )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, {**module.describe(tuple(example.shape[-2:])), "opset": str(opset)})
    with staged(path) as file:
        onnx.save(model, file)
        results = check_onnx(file, module, [(image,) for image in images])
        require_agreement(results, tolerance)
    return results


@contextlib.contextmanager
def _antialiased_resize(opset: int) -> Iterator[None]:
    """Teaches torch's older exporter the two antialiased resizes, as the newer one writes them."""
    from torch.onnx import symbolic_helper

    def resize(mode: str):
        @symbolic_helper.parse_args("v", "v", "b", "none")
        def symbolic(g, x, size, align_corners, scale_factors):
            batch_and_channels = g.op(
                "Slice", g.op("Shape", x), *(g.op("Constant", value_t=torch.tensor([i])) for i in (0, 2))
            )
            # height and width, which a trace computes from the image's unless they were made Python's
            if symbolic_helper._is_packed_list(size):
                sides = [symbolic_helper._unsqueeze_helper(g, side, [0]) for side in symbolic_helper._unpack_list(size)]
            else:
                sides = [size]
            sizes = g.op("Concat", batch_and_channels, *sides, axis_i=0)
            empty = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
            return g.op(
                "Resize",
                x,
                empty,
                empty,
                sizes,
                mode_s=mode,
                coordinate_transformation_mode_s="half_pixel",
                antialias_i=1,
                cubic_coeff_a_f=-0.5,  # Keys'
                exclude_outside_i=1,  # at the border, too, the weights sum to one
            )

        return symbolic

    symbolics = {
        "aten::_upsample_bilinear2d_aa": resize("linear"),
        "aten::_upsample_bicubic2d_aa": resize("cubic"),
    }
    for name, symbolic in symbolics.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, opset)
    try:
        yield
    finally:
        for name in symbolics:
            torch.onnx.unregister_custom_op_symbolic(name, opset)
