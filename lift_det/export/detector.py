"""Export of a whole detector to ONNX."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from .files import OPSET, TOLERANCE, Comparison, load_onnx, require_onnx, write_compared
from .modules import BackboneModule
from .traceable import traceable


def export_detector(
    detector: nn.Module,
    path: str | os.PathLike,
    images: Sequence[Tensor],
    *,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Writes a whole detector as ONNX, and compares the file in onnxruntime on the CPU with the detector.

    The input of the file is one image (1, 3, H, W), RGB, 0 to 255. The outputs are boxes (R, 4) as x0, y0, x1, y1 in
    pixels of the image, scores (R,), classes (R,) and, for a Mask R-CNN, masks (R, 1, 28, 28): probabilities on a grid
    over each box.

    Args:
        detector: a GeneralizedRCNN of lift_det or detectron2, on the CPU, in evaluation mode.
        path: only written, atomically, if the file agrees with the detector. It includes metadata.
        images: each (1, 3, H, W), all of the size that the file will take. The image with the most detections is
            traced, and all images are compared.
        tolerance: largest accepted difference, absolute or relative.

    Returns:
        The differences for each image.

    Raises:
        ExportError: the file does not agree with the detector.
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: the model is not supported, there are no images or several sizes, or nothing is detected.
    """
    require_onnx()
    import onnx

    if not isinstance(detector, GeneralizedRCNN):
        raise ValueError(f"Expected a GeneralizedRCNN, got {type(detector).__name__}.")
    if not images or any(image.shape != images[0].shape or image.shape[0] != 1 for image in images):
        raise ValueError(f"Expected images (1, 3, H, W) of one size, got {[tuple(image.shape) for image in images]}.")
    with torch.no_grad():
        counts = [len(_detect(detector, image)[0]) for image in images]
    if not any(counts):
        raise ValueError("The detector detects nothing in these images: use images with objects.")
    example = images[counts.index(max(counts))]
    names = ["boxes", "scores", "classes", *(["masks"] if detector.roi_heads.mask_on else [])]
    buffer = io.BytesIO()
    with _antialiased_resize(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is intended
        # torch.export does not support detectron2's boxes, whose number depends on the image
        torch.onnx.export(
            TracingAdapter(traceable(detector), (example,), _detect),
            (example,),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            dynamic_axes={name: {0: "objects"} for name in names},
        )
    model = onnx.load_from_string(buffer.getvalue())
    metadata = {
        **BackboneModule.of_detector(detector).describe(tuple(example.shape[-2:])),
        "kind": "detector",
        "inputs": "images: (1, 3, H, W) float32, RGB, 0 to 255; normalized and padded inside",
        "outputs": f"{', '.join(names)}; boxes are x0 y0 x1 y1 in pixels, masks are probabilities over each box",
        "classes": str(detector.roi_heads.num_classes),
    }
    onnx.helper.set_model_props(model, metadata)
    batches = [(image,) for image in images]
    return write_compared(
        path, lambda file: onnx.save(model, file), load_onnx, lambda image: _detect(detector, image), batches, tolerance
    )


def _detect(detector: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """(1, 3, H, W), RGB, 0 to 255 → boxes, scores, classes and, for a Mask R-CNN, masks."""
    image = images[0] if detector.input_format == "RGB" else images[0].flip(0)
    (instances,) = detector.inference([{"image": image}], do_postprocess=False)
    outputs = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
    return (*outputs, instances.pred_masks) if instances.has("pred_masks") else outputs


@contextlib.contextmanager
def _antialiased_resize() -> Iterator[None]:
    """Adds antialiased resizing to torch's TorchScript-based exporter."""
    from torch.onnx import symbolic_helper

    def symbolic_for(mode: str):
        @symbolic_helper.parse_args("v", "v", "b", "none")
        def symbolic(g, images, size, align_corners, scale_factors):
            # if the size was traced, it is a list of scalars
            if symbolic_helper._is_packed_list(size):
                size = [symbolic_helper._unsqueeze_helper(g, x, [0]) for x in symbolic_helper._unpack_list(size)]
            else:
                size = [size]
            batch_and_channels = symbolic_helper._slice_helper(g, g.op("Shape", images), axes=[0], starts=[0], ends=[2])
            empty = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
            size = g.op("Concat", batch_and_channels, *size, axis_i=0)
            options = {"antialias_i": 1, "cubic_coeff_a_f": -0.5, "exclude_outside_i": 1, "mode_s": mode}
            return g.op("Resize", images, empty, empty, size, **options)  # half_pixel coordinates are the default

        return symbolic

    names = {"aten::_upsample_bilinear2d_aa": "linear", "aten::_upsample_bicubic2d_aa": "cubic"}
    for name, mode in names.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic_for(mode), OPSET)
    try:
        yield
    finally:
        for name in names:
            torch.onnx.unregister_custom_op_symbolic(name, OPSET)
