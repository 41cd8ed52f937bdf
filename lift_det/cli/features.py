"""`lift-det features`: a ViT's features of images, upsampled and as they should be, as pictures and arrays."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import (
    UsageError,
    accept_overrides,
    add_model_arguments,
    read_lift,
    read_model_arguments,
    split_overrides,
)

if TYPE_CHECKING:
    import numpy as np

    from lift_det import FeatureExtractor
    from lift_det.data.image_files import InputFile

_EPILOG = """\
examples:
  lift-det features photo.jpg --backbone vit_small_patch14_dinov2.lvd142m --lift output/lift/lift.safetensors \\
      --point 320,180 --output output/features
  lift-det features photos/*.jpg --from output/lift --output output/features
  lift-det features photo.jpg --backbone dino_deitsmall16_pretrain.pth --layer 11 --facet key --output output/features

Each image gets about --size squared pixels in its own proportions, its sides rounded to whole patches. The ViT sees it
reduced 2**steps times, its map is upsampled as often, and beside that stands what the ViT gives of the whole image.

For photo.jpg it leaves photo.png, whose colours are the first three principal components of the true features, and
photo.npz:
  vit, bilinear, lift, true   (C, h, w) float32: the features, of the reduced image, upsampled, of the whole one
  image                       (H, W, 3) uint8, RGB: the image as the ViT sees it whole
  original_size               (2,) int64: height and width of the file's image, turned as its EXIF data says
with a point also
  point                       (2,) float64: x and y in pixels of the file's image
  similarity_vit, ...         (h, w) float32: cosine similarity of each cell to the one at the point
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `features` to the command."""
    parser = subparsers.add_parser(
        "features",
        help="show a ViT's features of images: bilinear beside LiFT beside the true ones",
        description="Draws a ViT's features of each image and writes them as arrays: of the image reduced, upsampled "
        "bilinearly and by LiFT, and of the whole image; with a point, how similar each cell is to the one there.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files; then key=value overrides of a config")
    parser.add_argument(
        "--backbone",
        metavar="NAME|CHECKPOINT",
        help="the ViT: timm's name of a pretrained one, which timm downloads, or a file of weights in any format that "
        "lift_det knows; in place of the model below",
    )
    parser.add_argument("--architecture", metavar="NAME", help="of a CHECKPOINT that does not say: timm's name")
    parser.add_argument("--num-heads", type=int, help="of a CHECKPOINT, where timm's architecture has others")
    parser.add_argument("--layer", type=int, help="with --backbone: the ViT's block, from 0 (the last)")
    parser.add_argument("--facet", choices=("token", "key", "query", "value"), help="with --backbone: of it (token)")
    add_model_arguments(parser)
    parser.add_argument("--lift", metavar="FILE", help="a trained LiFT, such as lift.safetensors (the model's own)")
    parser.add_argument(
        "--paper-patch-size",
        type=int,
        metavar="PIXELS",
        help="the LiFT is of the paper's authors, whose files do not say so, for patches of 8 or 16 pixels",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--point", type=_point, metavar="X,Y", help="in pixels of the image, from its left and its top")
    where.add_argument("--click", action="store_true", help="show each image, and take the point that is clicked")
    parser.add_argument("--size", type=int, default=448, help="pixels of a side, if the image were square (448)")
    parser.add_argument("--steps", type=int, default=1, help="how often the map is doubled (1)")
    parser.add_argument("--output", required=True, metavar="DIR", help="for the pictures and the arrays")
    accept_overrides(parser, "images")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw and write each image; 1 if any of them could not be."""
    from tqdm import tqdm

    from lift_det.data.image_files import find_files

    if arguments.steps < 1 or arguments.size < 1:
        raise UsageError("--steps and --size have to be positive.")
    inputs, overrides = split_overrides(arguments.images)
    if not inputs:
        raise UsageError(f"{' '.join(overrides)} is an override: name at least one IMAGE, too.")
    if arguments.click:
        _need_a_window()
    extractor = _extractor(arguments, overrides)
    files, failures = find_files(inputs, exclude=arguments.output)
    stems = [os.path.splitext(file.name)[0] for file in files]
    done = 0
    for file, stem in zip(tqdm(files, unit="image"), stems, strict=True):
        # photo.jpg and photo.png keep their suffixes, so that neither takes the other's place
        name = file.name if stems.count(stem) > 1 else stem
        reason = _write(extractor, file, os.path.join(arguments.output, name), arguments)
        if reason:
            failures.append((file.path, reason))
        else:
            done += 1
    for path, reason in failures:
        print(f"lift-det features: {path}: {reason}", file=sys.stderr)
    print(f"{done} done, each as .png and .npz in {arguments.output}; {len(failures)} could not be.")
    return 1 if failures else 0


def _extractor(arguments: argparse.Namespace, overrides: Sequence[str]) -> FeatureExtractor:
    import torch

    from lift_det import FeatureExtractor
    from lift_det.engine import load_model
    from lift_det.modeling import find_vit

    if bool(arguments.backbone) == bool(arguments.folder or arguments.config_file):
        raise UsageError("name one ViT: --backbone NAME|CHECKPOINT, --from DIR, or --config-file CONFIG --weights FILE")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    lift = read_lift(arguments) if arguments.lift else None
    if not arguments.backbone:
        if any(getattr(arguments, name) is not None for name in ("architecture", "num_heads", "layer", "facet")):
            raise UsageError("--architecture, --num-heads, --layer and --facet belong to --backbone")
        extractor = FeatureExtractor.of_model(load_model(*read_model_arguments(arguments, overrides), device), lift)
    else:
        if overrides or arguments.weights:
            raise UsageError("--weights and key=value overrides belong to --from or --config-file")
        vit = find_vit(arguments.backbone, arguments.architecture, arguments.num_heads).build()
        extractor = FeatureExtractor(vit, lift, layer=arguments.layer, facet=arguments.facet or "token")
    return extractor.to(device)


def _write(extractor: FeatureExtractor, file: InputFile, target: str, arguments: argparse.Namespace) -> str:
    """Writes the picture and the arrays of an image; returns why not, or nothing."""
    from lift_det import BilinearUpsample
    from lift_det.data.images import read_rgb
    from lift_det.modeling import upsampled_features, whole_patches
    from lift_det.visualization import check_point, draw_feature_maps, save_feature_maps

    if file.is_video:
        return "it is a video, and only images are taken"
    if os.path.realpath(f"{target}.png") == os.path.realpath(file.path):
        return "the picture would take its place: name another --output"
    image, reason = read_rgb(file.path)
    if image is None:
        return reason
    point = _clicked_point(image, file.name) if arguments.click else arguments.point
    if point is not None:
        try:
            check_point(point, image.shape[:2])
        except ValueError as error:
            return str(error)
    upsamplers = {"bilinear": BilinearUpsample()}
    if extractor.lift is not None and extractor.lift.name != "bilinear":
        upsamplers["lift"] = extractor.lift
    images = whole_patches(image, extractor.patch_size, arguments.steps, arguments.size)
    maps = upsampled_features(extractor, upsamplers, extractor.normalize(images), arguments.steps)
    maps = {name: map_[0].float().cpu() for name, map_ in maps.items()}
    seen = images[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype("uint8")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    draw_feature_maps(image, maps, f"{target}.png", point)
    save_feature_maps(f"{target}.npz", maps, seen, image.shape[:2], point)
    return ""


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no point: expected X,Y, such as 320,180") from None
    return x, y


def _need_a_window() -> None:
    """
    Raises:
        UsageError: matplotlib cannot open one here.
    """
    try:
        import matplotlib.pyplot as plt

        figure = plt.figure()
    except ImportError as error:  # what $MPLBACKEND asks for cannot run here
        raise UsageError(f"--click cannot open a window ({error}). Give the point instead: --point X,Y") from error
    framework = figure.canvas.required_interactive_framework
    plt.close(figure)
    if framework is None:
        raise UsageError(
            f"--click needs a window, and matplotlib's backend here, {plt.get_backend()}, opens none: there is no "
            "display, or no toolkit for it (Tk, Qt). Give the point instead: --point X,Y"
        )


def _clicked_point(image: np.ndarray, name: str) -> tuple[float, float] | None:
    """Shows an image, and waits for a click; None where the window is closed without one."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(num=name)
    # a pixel's left and upper edges have its number, as in --point
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_title("Click a point, or close the window for none")
    axes.set_axis_off()
    points = figure.ginput(1, timeout=0)
    plt.close(figure)
    return tuple(map(int, points[0])) if points else None
