"""Trains linear probes of segmentation on a frozen ViT's features, upsampled in several ways.

The methods are the ViT's own map, bilinear upsampling, any number of trained LiFTs, and the ViT's true features of a
larger image. See README.md beside this file.

python -m projects.linear_probe --backbone vit_small_patch14_dinov2.lvd142m --pretrained \
    --lift lift=lift.safetensors --output output/linear_probe
"""

from __future__ import annotations

import argparse
import dataclasses
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
    name, _, file = text.partition("=")
    if not (name and file):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE.safetensors, got '{text}'")
    return name, file


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got '{text}'")
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m projects.linear_probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", required=True, help="timm's name of the ViT")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", default="", metavar="FILE", help="the ViT's weights")
    weights.add_argument("--pretrained", action="store_true", help="timm's weights, from the Hugging Face hub")
    add("--lift", type=_named_file, action="append", default=[], metavar="NAME=FILE", help="a trained LiFT; repeatable")
    add("--train", default="coco_2017_train", help="registered dataset (default: %(default)s)")
    add("--val", default="coco_2017_val", help="registered dataset (default: %(default)s)")
    add("--limit", type=_positive, help="number of images of each dataset, from the first (default: all)")
    add("--device", default="cpu", help="default: %(default)s")
    add("--output", type=Path, default=Path("output/linear_probe"), help="folder (default: %(default)s)")
    for field in dataclasses.fields(Settings):
        kind = float if isinstance(field.default, float) else _positive
        text = f"{field.metadata['help']} (default: %(default)s)"
        add(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=text)
    args = parser.parse_args(argv)
    if len(dict(args.lift)) < len(args.lift):
        parser.error("--lift: the names must differ")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    try:
        net = lift_det.TimmViT(args.backbone, args.pretrained, args.checkpoint).to(args.device)
        lifts = {}
        for name, file in args.lift:
            lifts[name] = lift_det.load_lift(file)
            lifts[name].trained_on.check(net.feature_spec(), source=file)
        train, val = (load_labelled_images(data, settings.label_size, args.limit) for data in (args.train, args.val))
        results = compare(net, lifts, train, val, settings)
    except (DatasetError, CheckpointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    results |= {
        "backbone": args.backbone,
        "checkpoint": args.checkpoint or "pretrained",
        "lift": dict(args.lift),
        "data": {"train": args.train, "val": args.val, "limit": args.limit},
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
