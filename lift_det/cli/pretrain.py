"""`lift-det pretrain`: trains LiFT for a pretrained ViT on a folder of images."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from .arguments import accept_overrides, choose_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

_EPILOG = """\
examples:
  lift-det pretrain --images photos --backbone vit_small_patch14_dinov2.lvd142m --output output/lift
  lift-det pretrain --images coco/train2017 --val coco/val2017 --backbone dino_deitsmall16_pretrain.pth \\
      --architecture vit_small_patch16_224.dino --output output/lift --steps 2000 optimizer.lr=5e-4

It trains a config of configs/LiFT/ (the one for a CPU where there is no GPU) and leaves in --output what any training
of detectron2 does, and lift.safetensors, which load_lift() and the detectors' configs read.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `pretrain` to the command."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train LiFT for a pretrained ViT on a folder of images",
        description="Trains LiFT without labels, evaluates it beside nearest, bilinear and bicubic upsampling, and "
        "prints the table.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", nargs="+", required=True, metavar="DIR", help="folders of images, at any depth")
    parser.add_argument(
        "--val", nargs="+", metavar="DIR", help="folders to evaluate on; left out: every 20th image of --images"
    )
    parser.add_argument(
        "--backbone",
        required=True,
        metavar="NAME|CHECKPOINT",
        help="timm's name of a pretrained ViT, which timm downloads, or a file of weights in any format lift_det knows",
    )
    parser.add_argument("--architecture", metavar="NAME", help="of a CHECKPOINT that does not say: timm's name")
    parser.add_argument("--num-heads", type=int, help="of a CHECKPOINT, where timm's architecture has others")
    parser.add_argument("--output", required=True, metavar="DIR", help="for checkpoints, metrics and lift.safetensors")
    parser.add_argument("--layer", type=int, help="the ViT's block whose features are lifted, from 0 (the last)")
    parser.add_argument("--facet", default="token", choices=("token", "key", "query", "value"), help="(token)")
    parser.add_argument("--steps", type=int, help="training iterations (the config's)")
    parser.add_argument("--batch-size", type=int, help="images in a step, over all GPUs (the config's)")
    parser.add_argument("--image-size", type=int, help="pixels, a multiple of four patches (448, or the next one)")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes, one for each GPU (1)")
    parser.add_argument("--device", help="cuda or cpu (cuda where there is one)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    accept_overrides(parser, "opts")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    from lift_det.engine import launch, pretraining_config
    from lift_det.modeling import find_vit

    device = choose_device(arguments)
    cfg = pretraining_config(
        find_vit(arguments.backbone, arguments.architecture, arguments.num_heads),
        arguments.images,
        arguments.output,
        val=arguments.val,
        device=device,
        layer=arguments.layer,
        facet=arguments.facet,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        overrides=arguments.opts,
    )
    launch(_train, arguments.num_gpus, dist_url="auto", args=(cfg, arguments.resume, arguments.opts))
    return 0


def _train(cfg: DictConfig, resume: bool, opts: list[str]) -> None:
    """What each process runs."""
    from detectron2.utils import comm

    from lift_det.engine import do_train

    from .terminal import set_up

    do_train(set_up(cfg, opts, resume), cfg)
    if comm.is_main_process():
        print(_closing(cfg.train.output_dir))


def _closing(output: str) -> str:
    import json

    from lift_det.checkpoint import read_state_dict
    from lift_det.evaluation import reconstruction_table

    path = os.path.join(output, "lift.safetensors")
    metadata = read_state_dict(path)[1]
    table = reconstruction_table(json.loads(metadata["reconstruction"]))
    return (
        f"\nFeatures of {metadata['evaluated_images']} images against the true ones, after {metadata['steps']} steps:"
        f"\n\n{table}\n\nLiFT: {path}. Picture: {os.path.join(output, 'reconstruction.png')}."
    )
