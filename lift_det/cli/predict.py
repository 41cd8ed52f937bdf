"""`lift-det predict`: what a trained detector finds in images and videos, drawn, and as a JSON in COCO's format."""

from __future__ import annotations

import argparse
import sys

from .arguments import UsageError, accept_overrides, add_model_arguments, read_model_arguments, split_overrides

_EPILOG = """\
examples:
  lift-det predict photo.jpg --from output/my_detector --output predictions
  lift-det predict photos more/a.png 'scans/**/*.tif' clip.mp4 --from output/my_detector --output predictions
  lift-det predict photos --config-file COCO/mask_rcnn_lift_vitdet_b_100ep.py --weights model_final.pth \\
      --score-threshold 0.3 --output predictions

In --output: a picture for each image and an .mp4 for each video, named like them, and predictions.json. The exit code
is 1 if a file could not be read; all others are done nevertheless.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `predict` to the command."""
    parser = subparsers.add_parser(
        "predict",
        help="find objects in images and videos: drawn pictures and a COCO JSON",
        description="Runs a trained detector on images of any format and size, folders of them, and videos.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image, a folder (at any depth), a pattern in quotes or a video (.mp4, .avi, .mov, .mkv, .webm); "
        "KEY=VALUE is an override of the config",
    )
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="for pictures, videos and predictions.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out detections below (0.5)")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (1)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video, one frame of N (1)")
    parser.add_argument("--no-pictures", action="store_true", help="write predictions.json alone")
    accept_overrides(parser, "inputs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict; 1 if a file could not be read."""
    from lift_det.engine import Predictor, predict_files

    inputs, overrides = split_overrides(arguments.inputs)
    if not inputs:
        raise UsageError("name an image, a folder, a pattern or a video")
    cfg, weights = read_model_arguments(arguments, overrides)
    predictor = Predictor(cfg, weights, device=arguments.device, score_threshold=arguments.score_threshold)
    result = predict_files(
        predictor,
        inputs,
        arguments.output,
        pictures=not arguments.no_pictures,
        batch_size=arguments.batch_size,
        every=arguments.every,
    )
    images = max(1, result.num_images)
    print(
        f"{result.num_images} images, {result.num_detections} detections with a score of {arguments.score_threshold:g} "
        f"or more; {result.seconds / images:.2f} s an image, the model took {result.model_seconds / images:.2f}."
    )
    print(f"Predictions: {result.json_file}")
    if not arguments.no_pictures:
        print(f"Pictures: {arguments.output}")
    for name, reason in result.failures:
        print(f"lift-det: cannot read '{name}': {reason}", file=sys.stderr)
    return 1 if result.failures else 0
