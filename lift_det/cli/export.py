"""Exports a LiFT, a ViT with LiFT, a backbone or a detector to ONNX or torch.export.

examples:
  lift-det export lift --lift output/lift/lift.safetensors --output lift.onnx
  lift-det export features --backbone vit_small_patch14_dinov2.lvd142m --lift output/lift/lift.safetensors \\
      --output features.onnx --size 224 224 --size 336 448 --size 518 518
  lift-det export backbone --from output/mine --output backbone.pt2
  lift-det export detector --from output/mine --images photos/a.jpg photos/b.jpg --output detector.onnx

The file is compared with the model for several image sizes, and is only kept if the absolute or relative differences
are at most 1e-4. ONNX needs pip install "lift_det[export]".
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from .arguments import (
    UsageError,
    add_lift_arguments,
    add_model_arguments,
    add_overrides,
    add_vit_arguments,
    build_extractor,
    read_lift,
    read_model_arguments,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lift_det.export import ExportModule

_IMAGES = "Images are float32, RGB, 0 to 255, and are normalized inside."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="{lift,features,backbone,detector}", required=True)
    lift = kinds.add_parser(
        "lift",
        help="a LiFT",
        description="Input: normalized images (N, 3, H, W) and features (N, C, h, w). Output: (N, C, 2h, 2w).",
    )
    add_lift_arguments(lift)
    features = kinds.add_parser(
        "features", help="a ViT and its LiFT", description=f"Input: images. Output: features. {_IMAGES}"
    )
    add_vit_arguments(features)
    add_lift_arguments(features)
    features.add_argument("--upsample", type=int, default=1, help="number of doublings (default: 1)")
    backbone = kinds.add_parser(
        "backbone",
        help="a detector's ViT, LiFT and pyramid",
        description=f"Input: images, padded with pixel_mean. Output: p2, p3 and so on. {_IMAGES}",
    )
    detector = kinds.add_parser(
        "detector",
        help="a whole detector, as ONNX",
        description="Input: one image (1, 3, H, W) of a fixed size. Output: boxes, scores, classes, and masks as 28×28 "
        f"grids over the boxes. {_IMAGES} Resizing of images and pasting of masks are not included.",
    )
    detector.add_argument("--images", nargs="+", required=True, metavar="FILE", help="images to compare on")
    for kind in (lift, features, backbone, detector):
        kind.add_argument("--output", required=True, metavar="FILE", help="ends in .onnx, or .pt2 (not for detectors)")
        kind.add_argument(
            "--size",
            nargs=2,
            type=int,
            action="append",
            metavar=("H", "W"),
            help="image size of the file if it is fixed, else a size to compare on; may be repeated (default: the size "
            "that the model pads to, or about 224)",
        )
    for kind in (lift, features, backbone):
        group = kind.add_mutually_exclusive_group()
        group.add_argument("--dynamic", action="store_true", default=None, help="any image size (default if possible)")
        group.add_argument("--fixed", dest="dynamic", action="store_false", help="only one image size")
    for kind in (backbone, detector):
        add_model_arguments(kind)
        add_overrides(kind)


def run(arguments: argparse.Namespace) -> int:
    """Exports the model, and prints the comparison."""
    suffix = os.path.splitext(arguments.output)[1]
    if suffix not in ((".onnx",) if arguments.kind == "detector" else (".onnx", ".pt2")):
        raise UsageError(f"--output {arguments.output}: expected .onnx, or .pt2 (not for detectors)")

    from lift_det.export import export_detector, export_onnx, export_program, require_onnx

    if suffix == ".onnx":
        require_onnx()
    detector = _load_detector(arguments) if arguments.kind in ("backbone", "detector") else None
    module = _build_module(arguments, detector)
    sizes = [tuple(size) for size in arguments.size or [module.default_size()]]
    if arguments.kind == "detector" and (len(sizes) > 1 or not (arguments.size or module.square_pad)):
        raise UsageError("give one --size (it is only optional if the detector pads images to one size)")
    images = [_read_image(path, sizes[0]) for path in getattr(arguments, "images", ())]
    os.makedirs(os.path.dirname(os.path.abspath(arguments.output)), exist_ok=True)
    print("Tracing, which takes a few minutes for a large ViT …", file=sys.stderr)
    if images:
        results = export_detector(detector, arguments.output, images)
    else:
        dynamic = not module.fixed_size_reason if arguments.dynamic is None else arguments.dynamic
        export = export_onnx if suffix == ".onnx" else export_program
        results = export(module, arguments.output, sizes, dynamic=dynamic)
    print(*results, sep="\n")
    print(f"Written: {arguments.output} ({os.path.getsize(arguments.output) / 2**20:.1f} MiB)")
    return 0


def _build_module(arguments: argparse.Namespace, detector: nn.Module | None) -> ExportModule:
    from lift_det.export import BackboneModule, FeaturesModule, LiFTModule

    if detector is not None:
        return BackboneModule.of_detector(detector)
    lift = read_lift(arguments)
    if arguments.kind == "lift":
        return LiFTModule(lift)
    return FeaturesModule(build_extractor(arguments, lift, arguments.upsample))


def _load_detector(arguments: argparse.Namespace) -> nn.Module:
    from lift_det.engine import load_model

    if arguments.device not in (None, "cpu"):
        raise UsageError("models are exported on the CPU (--device cpu); the file runs on any device")
    return load_model(*read_model_arguments(arguments, arguments.overrides), "cpu")


def _read_image(path: str, size: tuple[int, int]) -> Tensor:
    """Returns an image (1, 3, H, W), RGB, 0 to 255, resized without keeping the aspect ratio."""
    import numpy as np
    import torch
    from PIL import Image

    from lift_det.data.images import read_rgb

    image, reason = read_rgb(path)
    if image is None:
        raise ValueError(f"{path}: {reason}")
    resized = np.array(Image.fromarray(image).resize((size[1], size[0])))
    return torch.from_numpy(resized).permute(2, 0, 1)[None].float()
