"""`lift-det export`: LiFT, a ViT with its LiFT, a backbone or a detector, as ONNX or as a program of torch.export."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .arguments import UsageError, accept_overrides, add_model_arguments, read_lift, read_model_arguments

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lift_det.export import Comparison, ExportModule

_EPILOG = """\
examples:
  lift-det export lift --lift output/lift/lift.safetensors --output lift.onnx
  lift-det export features --backbone vit_small_patch14_dinov2.lvd142m --lift output/lift/lift.safetensors \\
      --output features.onnx --size 224 224 --size 336 448 --size 518 518
  lift-det export backbone --from output/my_detector --output backbone.pt2
  lift-det export detector --from output/my_detector --images photos/a.jpg photos/b.jpg --output detector.onnx

The file is run beside torch (ONNX in onnxruntime), on random images or on those that are named, its largest differences
are printed, and it is kept only if the absolute or the relative one is at most 1e-4 each time. A .onnx needs
pip install "lift_det[export]". Tested with torch 2.14.
"""
_IMAGES = "It takes images (N, 3, H, W) in float32, RGB, 0 to 255, and normalises them itself."


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `export` to the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a LiFT, a ViT with its LiFT, a backbone or a detector as ONNX or for torch.export",
        description="Writes a model as ONNX (.onnx) or as a program of torch.export (.pt2) and compares it with torch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="what", metavar="{lift,features,backbone,detector}", required=True)
    lift = kinds.add_parser(
        "lift",
        help="a LiFT alone",
        description="A LiFT alone: images (N, 3, H, W), normalised as its ViT saw them, and features (N, C, h, w) to "
        "(N, C, 2h, 2w).",
    )
    _add_lift_arguments(lift)
    _add_file_arguments(lift)
    lift.set_defaults(run=run, build=_lift)

    features = kinds.add_parser(
        "features", help="a ViT and its LiFT", description=f"A ViT and its LiFT: images to features. {_IMAGES}"
    )
    features.add_argument(
        "--backbone",
        required=True,
        metavar="NAME|CHECKPOINT",
        help="timm's name of a pretrained ViT, which timm downloads, or a file of weights in any format lift_det knows",
    )
    features.add_argument("--architecture", metavar="NAME", help="of a CHECKPOINT that does not say: timm's name")
    features.add_argument("--num-heads", type=int, help="of a CHECKPOINT, where timm's architecture has others")
    _add_lift_arguments(features)
    features.add_argument("--layer", type=int, help="the ViT's block, from 0 (what the LiFT was trained on)")
    features.add_argument("--facet", choices=("token", "key", "query", "value"), help="of it (the LiFT's)")
    features.add_argument("--steps", type=int, default=1, help="how often the map is doubled (1)")
    _add_file_arguments(features)
    features.set_defaults(run=run, build=_features)

    backbone = kinds.add_parser(
        "backbone",
        help="a detector's ViT, LiFT and pyramid",
        description=f"A detector's ViT, LiFT and pyramid: images to p2, p3, …. {_IMAGES} Pad them with its pixel_mean.",
    )
    add_model_arguments(backbone)
    _add_file_arguments(backbone)
    backbone.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    accept_overrides(backbone, "opts")
    backbone.set_defaults(run=run, build=_backbone)

    detector = kinds.add_parser(
        "detector",
        help="a whole detector, as ONNX",
        description="A whole detector, as ONNX: one image (1, 3, H, W) of one size, float32, RGB, 0 to 255, to boxes, "
        "scores, classes and masks of 28×28, in pixels of that image. Resizing images and pasting masks is left to "
        "you. There is no .pt2: torch.export does not trace detectron2's boxes, whose number depends on the image.",
    )
    add_model_arguments(detector)
    detector.add_argument("--images", nargs="+", required=True, metavar="FILE", help="on which the file is compared")
    detector.add_argument("--output", required=True, metavar="FILE", help="ends in .onnx")
    detector.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="pixels (the square that the model pads to)"
    )
    detector.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    accept_overrides(detector, "opts")
    detector.set_defaults(run=run_detector)


def _add_lift_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lift", required=True, metavar="FILE", help="a trained LiFT, such as lift.safetensors")
    parser.add_argument(
        "--paper-patch-size",
        type=int,
        metavar="PIXELS",
        help="the LiFT is of the paper's authors, whose files do not say so, for patches of 8 or 16 pixels",
    )


def _add_file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument("--format", choices=("onnx", "pt2"), help="(what --output ends in)")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        action="append",
        metavar=("H", "W"),
        help="pixels; the size of a fixed file, or one on which a dynamic file is compared (may be given again; it is "
        "compared on three at least)",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--dynamic",
        action="store_true",
        default=None,
        help="the file takes images of any size (unless the model pads them all to one square, or cannot)",
    )
    sizes.add_argument("--fixed", dest="dynamic", action="store_false", help="the file takes images of one size")


def run(arguments: argparse.Namespace) -> int:
    """Export; 1 if something is wrong with what was given, or the file does not agree."""
    kind = arguments.format or os.path.splitext(arguments.output)[1].removeprefix(".")
    if kind not in ("onnx", "pt2"):
        raise UsageError(f"--output {arguments.output}: name a file that ends in .onnx or .pt2, or say --format")

    from lift_det.export import export_onnx, export_program

    if kind == "onnx" and not _can_write_onnx():
        return 1
    module: ExportModule = arguments.build(arguments)
    dynamic = arguments.dynamic
    if dynamic is None:
        dynamic = not module.max_size and not module.fixed_only
    sizes = [tuple(size) for size in arguments.size or [module.usual_size()]]
    if not dynamic and len(sizes) > 1:
        raise UsageError("a file for one size, as this one is, has one --size; --dynamic makes a file for any size")
    _prepare(arguments.output)
    export = export_onnx if kind == "onnx" else export_program
    results = export(module, arguments.output, sizes, dynamic=dynamic)
    _report(arguments.output, results, module.describe(None if dynamic else sizes[0]))
    return 0


def run_detector(arguments: argparse.Namespace) -> int:
    """Export a whole detector; 1 as :func:`run`."""
    if not arguments.output.endswith(".onnx"):
        raise UsageError(
            "a whole detector can be written as .onnx alone: torch.export does not trace detectron2's boxes, whose "
            "number depends on the image. `lift-det export backbone` writes a .pt2 of everything before them"
        )

    from lift_det.export import DetectorModule, export_detector

    if not _can_write_onnx():
        return 1
    module = DetectorModule(_load_detector(arguments))
    size = tuple(arguments.size or module.usual_size())
    _prepare(arguments.output)
    results = export_detector(module, arguments.output, [_read_image(path, size) for path in arguments.images])
    _report(arguments.output, results, module.describe(size))
    return 0


def _can_write_onnx() -> bool:
    """Whether ONNX's packages are here; says which are not."""
    from lift_det.export import require_onnx

    try:
        require_onnx()
    except ImportError as error:
        print(f"lift-det: {error}", file=sys.stderr)
        return False
    return True


def _prepare(output: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    print("Tracing; a large ViT takes a few minutes …", file=sys.stderr)


def _report(output: str, results: Sequence[Comparison], facts: Mapping[str, str]) -> None:
    for result in results:
        print(result)
    print(f"{output} ({os.path.getsize(output) / 2**20:.1f} MiB): {facts['kind']}; size: {facts['size']}.")
    print(f"  in   {facts['inputs']}\n  out  {facts['outputs']}")


def _lift(arguments: argparse.Namespace) -> ExportModule:
    from lift_det.export import LiFTModule

    return LiFTModule(read_lift(arguments))


def _features(arguments: argparse.Namespace) -> ExportModule:
    from lift_det.export import FeaturesModule
    from lift_det.modeling import FeatureExtractor, find_vit

    lift = read_lift(arguments)
    trained_on = lift.trained_on
    layer = trained_on.layer if arguments.layer is None else arguments.layer
    facet = arguments.facet or trained_on.facet or "token"
    norm = trained_on.final_norm if facet == "token" else None
    net = find_vit(arguments.backbone, arguments.architecture, arguments.num_heads).build()
    extractor = FeatureExtractor(net, lift, layer=layer, facet=facet, norm=norm, steps=arguments.steps)
    return FeaturesModule(extractor.eval())


def _backbone(arguments: argparse.Namespace) -> ExportModule:
    from lift_det.export import BackboneModule

    return BackboneModule.of_detector(_load_detector(arguments))


def _load_detector(arguments: argparse.Namespace) -> nn.Module:
    from lift_det.engine import load_model

    if arguments.device not in (None, "cpu"):
        raise UsageError("files are made and compared on the CPU (--device cpu); they run on any device")
    return load_model(*read_model_arguments(arguments, arguments.opts), "cpu")


def _read_image(path: str, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W), RGB, 0 to 255, of that size whatever the image's proportions."""
    import numpy as np
    import torch
    from PIL import Image

    from lift_det.data.images import read_rgb

    image, reason = read_rgb(path)
    if image is None:
        raise ValueError(f"{path}: {reason}")
    resized = torch.from_numpy(np.array(Image.fromarray(image).resize((size[1], size[0]))))
    return resized.permute(2, 0, 1)[None].float()
