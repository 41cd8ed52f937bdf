"""Trains LiFT for a pretrained ViT on images without labels.

examples:
  lift-det pretrain --images photos --backbone vit_small_patch14_dinov2.lvd142m --output output/lift
  lift-det pretrain --images coco/train2017 --val coco/val2017 --backbone dino_deitsmall16_pretrain.pth \\
      --architecture vit_small_patch16_224.dino --output output/lift --iterations 2000 optimizer.lr=5e-4

The config is configs/common/lift_training.py, or configs/LiFT/lift_vits14_cpu.py on a CPU. The LiFT is compared with
bilinear upsampling, and written to lift.safetensors in --output, for load_lift() and the configs of detectors.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from .arguments import add_training_arguments, add_vit_arguments, choose_device

if TYPE_CHECKING:
    from omegaconf import DictConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_vit_arguments(parser, lift=False)
    parser.add_argument("--images", nargs="+", required=True, metavar="DIR", help="folders, searched recursively")
    parser.add_argument(
        "--val", nargs="+", metavar="DIR", help="folders to evaluate on (default: every 20th image of --images)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--image-size", type=int, help="in pixels, a multiple of four patches (default: 448 or the next such multiple)"
    )
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Starts the training."""
    from lift_det.engine import launch, pretraining_config
    from lift_det.modeling import find_vit

    cfg = pretraining_config(
        find_vit(arguments.backbone, arguments.architecture, arguments.num_heads),
        arguments.images,
        arguments.output,
        val=arguments.val,
        device=choose_device(arguments),
        layer=arguments.layer,
        facet=arguments.facet or "token",
        iterations=arguments.iterations,
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        overrides=arguments.overrides,
    )
    launch(_train, arguments.num_gpus, dist_url="auto", args=(cfg, arguments.resume, arguments.overrides))
    return 0


def _train(cfg: DictConfig, resume: bool, overrides: list[str]) -> None:
    """Runs in each process."""
    from detectron2.utils import comm

    from lift_det.checkpoint import read_state_dict
    from lift_det.engine import do_train
    from lift_det.evaluation import reconstruction_table

    from .terminal import set_up

    do_train(set_up(cfg, overrides, resume), cfg)
    if comm.is_main_process():
        path = os.path.join(cfg.train.output_dir, "lift.safetensors")
        metadata = read_state_dict(path)[1]
        print(f"\nSimilarity to the true features of {metadata['evaluated_images']} images:\n")
        print(reconstruction_table(json.loads(metadata["reconstruction"])))
        print(f"\nWritten: {path}, after {metadata['steps']} iterations")
