"""Visualizes features of a ViT: of the reduced image, upsampled bilinearly and by LiFT, and of the full image.

examples:
  lift-det features photo.jpg --backbone vit_small_patch14_dinov2.lvd142m --lift output/lift/lift.safetensors \\
      --point 320,180 --output output/features
  lift-det features photos/*.jpg --from output/lift --output output/features
  lift-det features photo.jpg --backbone dino_deitsmall16_pretrain.pth --layer 11 --facet key --output output/features

Each image is resized to about --size² pixels, a multiple of the patch size. Its sides are divided by 2**UPSAMPLE to get
the reduced image.

The output for photo.jpg is photo.png, whose colours are the first three principal components of the features of the
full image, and photo.npz with these arrays:
  vit, bilinear, lift, true   (C, h, w) float32: features of the reduced image, upsampled, of the full image
  image                       (H, W, 3) uint8, RGB: the resized image
  original_size               (2,) int64: height and width of the original image, in its EXIF orientation
  point                       (2,) float64: x and y in pixels of the original image (with --point)
  similarity_vit, ...         (h, w) float32: cosine similarity of each cell to the cell at the point (with --point)
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
    from lift_det import FeatureExtractor
    from lift_det.data.image_files import InputFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files or folders; KEY=VALUE overrides the config")
    add_vit_arguments(parser, required=False)
    add_model_arguments(parser)
    add_lift_arguments(parser, required=False)
    parser.add_argument("--point", type=_point, metavar="X,Y", help="point to compare with, in pixels of the image")
    parser.add_argument("--size", type=int, default=448, help="square root of the number of pixels (default: 448)")
    parser.add_argument("--upsample", type=int, default=1, help="number of doublings (default: 1)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for drawings and arrays")
    add_overrides(parser, "images")


def run(arguments: argparse.Namespace) -> int:
    """Writes a drawing and arrays of each image, and returns 1 if one of them fails."""
    from tqdm import tqdm

    from lift_det.data.image_files import find_files

    if arguments.upsample < 1 or arguments.size < 1:
        raise UsageError("--upsample and --size must be positive")
    if not arguments.images:
        raise UsageError("name at least one IMAGE")
    extractor = _extractor(arguments)
    files, failures = find_files(arguments.images, exclude=arguments.output)
    done, stems = 0, [os.path.splitext(file.name)[0] for file in files]
    for file, stem in zip(tqdm(files, unit="image"), stems, strict=True):
        # photo.jpg and photo.png keep their suffixes
        name = file.name if stems.count(stem) > 1 else stem
        reason = _write(extractor, file, os.path.join(arguments.output, name), arguments)
        done += not reason
        if reason:
            failures.append((file.path, reason))
    for path, reason in failures:
        print(f"lift-det features: {path}: {reason}", file=sys.stderr)
    print(f"{done} images written to {arguments.output} as .png and .npz, {len(failures)} failed.")
    return 1 if failures else 0


def _extractor(arguments: argparse.Namespace) -> FeatureExtractor:
    import torch

    from lift_det import FeatureExtractor
    from lift_det.engine import load_model

    if bool(arguments.backbone) == bool(arguments.folder or arguments.config_file):
        raise UsageError("name one ViT: --backbone NAME|CHECKPOINT, --from DIR, or --config-file CONFIG --weights FILE")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    lift = read_lift(arguments) if arguments.lift else None
    if arguments.backbone:
        if arguments.overrides or arguments.weights:
            raise UsageError("--weights and KEY=VALUE need --from or --config-file")
        return build_extractor(arguments, lift).to(device)
    if any(getattr(arguments, name) is not None for name in ("architecture", "num_heads", "layer", "facet")):
        raise UsageError("--architecture, --num-heads, --layer and --facet need --backbone")
    model = load_model(*read_model_arguments(arguments, arguments.overrides), device)
    return FeatureExtractor.of_model(model, lift).to(device)


def _write(extractor: FeatureExtractor, file: InputFile, target: str, arguments: argparse.Namespace) -> str:
    """Writes the drawing and the arrays of an image. Returns the reason of a failure, or an empty string."""
    from lift_det import BilinearUpsample
    from lift_det.data.images import read_rgb
    from lift_det.modeling import upsampled_features, whole_patches
    from lift_det.visualization import check_point, draw_feature_maps, save_feature_maps

    if file.is_video:
        return "expected an image, got a video"
    if os.path.realpath(f"{target}.png") == os.path.realpath(file.path):
        return "the drawing would overwrite the image: use another --output"
    image, reason = read_rgb(file.path)
    if image is None:
        return reason
    if arguments.point is not None:
        try:
            check_point(arguments.point, image.shape[:2])
        except ValueError as error:
            return str(error)
    upsamplers = {"bilinear": BilinearUpsample()}
    if extractor.lift is not None and extractor.lift.name != "bilinear":
        upsamplers["lift"] = extractor.lift
    images = whole_patches(image, extractor.patch_size, arguments.upsample, arguments.size)
    maps = upsampled_features(extractor, upsamplers, extractor.normalize(images), arguments.upsample)
    maps = {name: map_[0].float().cpu() for name, map_ in maps.items()}
    resized = images[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype("uint8")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    draw_feature_maps(image, maps, f"{target}.png", arguments.point)
    save_feature_maps(f"{target}.npz", maps, resized, image.shape[:2], arguments.point)
    return ""


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y, such as 320,180, got '{text}'") from None
    return x, y
