"""Detects objects in images and videos.

examples:
  lift-det predict photo.jpg --from output/mine --output predictions
  lift-det predict photos more/a.png 'scans/**/*.tif' clip.mp4 --from output/mine --output predictions
  lift-det predict photos --config-file COCO/mask_rcnn_lift_vitdet_b_100ep.py --weights model_final.pth \\
      --score-threshold 0.3 --output predictions

Drawings of images, .mp4 videos and predictions.json are written to --output. Files that cannot be read are skipped and
listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys

from .arguments import UsageError, add_model_arguments, add_overrides, read_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder (searched recursively), quoted pattern, or video (.mp4, .avi, .mov, .mkv, .webm); "
        "KEY=VALUE overrides the config",
    )
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for drawings and predictions.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="smallest score (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=1, help="images in a batch (default: 1)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every Nth frame of a video (default: 1)")
    parser.add_argument("--no-pictures", action="store_true", help="only write predictions.json")
    add_overrides(parser, "inputs")


def run(arguments: argparse.Namespace) -> int:
    """Predicts on the files, and returns 1 if one of them cannot be read."""
    from lift_det.engine import Predictor, predict_files

    if not arguments.inputs:
        raise UsageError("name an image, a folder, a pattern or a video")
    cfg, weights = read_model_arguments(arguments, arguments.overrides)
    predictor = Predictor(
        cfg, weights, device=arguments.device, score_threshold=arguments.score_threshold, mask_format="rle"
    )
    result = predict_files(
        predictor,
        arguments.inputs,
        arguments.output,
        pictures=not arguments.no_pictures,
        batch_size=arguments.batch_size,
        every=arguments.every,
    )
    images = max(1, result.num_images)
    print(
        f"{result.num_images} images, {result.num_detections} detections with scores from "
        f"{arguments.score_threshold:g}; {result.seconds / images:.2f} s per image, "
        f"{result.model_seconds / images:.2f} s of it in the model."
    )
    print(f"Written: {arguments.output} ({result.json_file})")
    for name, reason in result.failures:
        print(f"lift-det predict: cannot read '{name}': {reason}", file=sys.stderr)
    return 1 if result.failures else 0
