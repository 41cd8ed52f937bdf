"""A linear probe of segmentation: which class is at this pixel, read off a frozen ViT's features by a 1×1 convolution.

Compares the ViT's own map, bilinear upsampling, any number of trained LiFTs, and the ViT's true features of a larger
image. README.md beside this file says what is measured and how. From the checkout's root:

python -m projects.linear_probe --backbone vit_small_patch14_dinov2.lvd142m --pretrained \
    --lift lift=lift.safetensors --output output/linear_probe
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

import lift_det
from lift_det.checkpoint import CheckpointError
from lift_det.data import DatasetError

from .compare import compare, format_table
from .labels import load_labelled_images
from .probe import Settings


def _named_file(text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not (name and separator and file):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE.safetensors, got '{text}'")
    return name, file


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got '{text}'")
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m projects.linear_probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", required=True, help="timm's name of the ViT")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", default="", metavar="FILE", help="a file of the ViT's weights")
    weights.add_argument("--pretrained", action="store_true", help="timm's own weights, from the Hugging Face hub")
    parser.add_argument(
        "--lift",
        type=_named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a trained LiFT and its name in the table; any number of times",
    )
    parser.add_argument("--train", default="coco_2017_train", help="registered data set (default: %(default)s)")
    parser.add_argument("--val", default="coco_2017_val", help="registered data set (default: %(default)s)")
    parser.add_argument(
        "--classes",
        default="categories",
        choices=("categories", "supercategories", "object"),
        help="what the probe tells apart, beside background (default: %(default)s)",
    )
    parser.add_argument("--limit", type=_positive, help="only the first so many images of each")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("output/linear_probe"), help="folder (default: %(default)s)"
    )
    for field, text in (
        ("input_size", "side of the square images that the ViT sees, in pixels"),
        ("steps", "how often maps are doubled"),
        ("label_size", "side of the crops and of their label maps, in pixels"),
        ("band", "pixels on each side of boundaries for the boundary figure"),
        ("seeds", "probes for each method"),
        ("iterations", "steps of AdamW"),
        ("batch_pixels", "pixels in a step"),
    ):
        parser.add_argument(
            f"--{field.replace('_', '-')}",
            type=_positive,
            default=getattr(Settings, field),
            help=f"{text} (%(default)s)",
        )
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate, help="(%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=Settings.weight_decay, help="(%(default)s)")
    args = parser.parse_args(argv)
    names = [name for name, _ in args.lift]
    if len(set(names)) < len(names):
        parser.error(f"--lift: each name only once, got {', '.join(names)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    settings = Settings(**{field: getattr(args, field) for field in Settings.__dataclass_fields__})
    try:
        net = lift_det.TimmViT(args.backbone, args.pretrained, args.checkpoint).to(args.device)
        lifts = {}
        for name, file in args.lift:
            lifts[name] = lift_det.load_lift(file)
            lifts[name].trained_on.check(net.feature_spec(), source=file)
        train = load_labelled_images(args.train, settings.label_size, args.limit, args.classes)
        val = load_labelled_images(args.val, settings.label_size, args.limit, args.classes)
        results = compare(net, lifts, train, val, settings)
    except (DatasetError, CheckpointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    results |= {
        "backbone": args.backbone,
        "checkpoint": args.checkpoint or "pretrained",
        "lift": dict(args.lift),
        "data": {"train": args.train, "val": args.val, "limit": args.limit, "classes": args.classes},
        "machine": {"device": args.device, "threads": torch.get_num_threads(), "processor": platform.machine()},
        "versions": {"lift_det": lift_det.__version__, "torch": torch.__version__, "timm": timm.__version__},
    }
    table = format_table(results)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.output / "table.md").write_text(table + "\n")
    print(f"\n{table}\n\nwritten to {args.output / 'results.json'} and table.md")


if __name__ == "__main__":
    main()
