"""Shows a ViT's features of images: of the reduced image, upsampled bilinearly and by LiFT, and of the whole image.

examples:
  lift-det features photo.jpg --backbone vit_small_patch14_dinov2.lvd142m --lift output/lift/lift.safetensors \\
      --point 320,180 --output output/features
  lift-det features photos/*.jpg --from output/lift --output output/features
  lift-det features photo.jpg --backbone dino_deitsmall16_pretrain.pth --layer 11 --facet key --output output/features

Each image is resized to about --size² pixels, in whole patches. The ViT sees it reduced 2**UPSAMPLE times.

photo.jpg gives photo.png, whose colours are the first three principal components of the true features, and photo.npz:
  vit, bilinear, lift, true   (C, h, w) float32: features of the reduced image, upsampled, of the whole image
  image                       (H, W, 3) uint8, RGB: the resized image
  original_size               (2,) int64: height and width of the file's image, with its EXIF orientation
  point                       (2,) float64: x and y in pixels of the file's image (with --point)
  similarity_vit, ...         (h, w) float32: cosine similarity of each cell to the one at the point (with --point)
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
    """Adds the arguments of `lift-det features`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files or folders; KEY=VALUE overrides the config")
    add_vit_arguments(parser, required=False)
    add_model_arguments(parser)
    add_lift_arguments(parser, required=False)
    parser.add_argument("--point", type=_point, metavar="X,Y", help="in pixels of the image, from the upper left")
    parser.add_argument("--size", type=int, default=448, help="side of a square image in pixels (default: 448)")
    parser.add_argument("--upsample", type=int, default=1, help="how often the map is doubled (default: 1)")
    parser.add_argument("--output", required=True, metavar="DIR", help="for pictures and arrays")
    add_overrides(parser, "images")


def run(arguments: argparse.Namespace) -> int:
    """Writes a picture and arrays for each image; 1 if one of them fails."""
    from tqdm import tqdm

    from lift_det.data.image_files import find_files

    if arguments.upsample < 1 or arguments.size < 1:
        raise UsageError("--upsample and --size have to be positive")
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
            raise UsageError("--weights and KEY=VALUE belong to --from or --config-file")
        return build_extractor(arguments, lift).to(device)
    if any(getattr(arguments, name) is not None for name in ("architecture", "num_heads", "layer", "facet")):
        raise UsageError("--architecture, --num-heads, --layer and --facet belong to --backbone")
    model = load_model(*read_model_arguments(arguments, arguments.overrides), device)
    return FeatureExtractor.of_model(model, lift).to(device)


def _write(extractor: FeatureExtractor, file: InputFile, target: str, arguments: argparse.Namespace) -> str:
    """Writes the picture and the arrays of an image; returns the reason of a failure, or an empty string."""
    from lift_det import BilinearUpsample
    from lift_det.data.images import read_rgb
    from lift_det.modeling import upsampled_features, whole_patches
    from lift_det.visualization import check_point, draw_feature_maps, save_feature_maps

    if file.is_video:
        return "expected an image, got a video"
    if os.path.realpath(f"{target}.png") == os.path.realpath(file.path):
        return "the picture would overwrite the image: name another --output"
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
