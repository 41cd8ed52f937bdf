"""`lift-det pretrain`: trains LiFT for a pretrained ViT on a folder of images."""

from __future__ import annotations

import argparse
import os
import sys

_EPILOG = """\
examples:
  lift-det pretrain --images photos --backbone vit_small_patch14_dinov2.lvd142m --output output/lift
  lift-det pretrain --images coco/train2017 --val coco/val2017 --backbone dino_deitsmall16_pretrain.pth \\
      --architecture vit_small_patch16_224.dino --output output/lift --steps 2000 optimizer.lr=5e-4

It trains a config of configs/LiFT/ (the one for a CPU where there is no GPU) and leaves in --output what any training
of detectron2 does, and lift.safetensors, which load_lift() and the detectors' configs read.
"""

#: width and depth -> the size in timm's names
_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}


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
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config, after all options")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train; 1 if something is wrong with what was given."""
    import torch
    from detectron2.engine import launch

    from lift_det.checkpoint import CheckpointError
    from lift_det.data import DatasetError

    if arguments.device == "cpu" and arguments.num_gpus > 1 and torch.cuda.is_available():
        print("lift-det: on a CPU, hide the GPUs (CUDA_VISIBLE_DEVICES=) or take --num-gpus 1.", file=sys.stderr)
        return 1
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = _config(arguments, device)
        launch(
            _train,
            arguments.num_gpus,
            dist_url="auto",
            args=(config, arguments.output, arguments.resume, arguments.opts),
        )
        closing = _closing(arguments.output)
    except (CheckpointError, DatasetError, ValueError, OSError, torch.multiprocessing.ProcessRaisedException) as error:
        print(f"lift-det: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lift-det: stopped; the same command with --resume goes on from the last checkpoint.", file=sys.stderr)
        return 1
    print(closing)
    return 0


def _config(arguments: argparse.Namespace, device: str) -> dict[str, object]:
    """What of the config the command line sets: dotted names to values."""
    values = _backbone(arguments)
    size, patch = arguments.image_size or 448, values["model.lift.patch_size"]
    if arguments.image_size is None:
        size += -size % (4 * patch)
    elif size % (4 * patch):
        raise ValueError(f"--image-size {size}: with patches of {patch} pixels it has to be a multiple of {4 * patch}.")
    values |= {
        "dataloader.train.dataset.root": [os.path.abspath(folder) for folder in arguments.images],
        "dataloader.test.dataset.root": [os.path.abspath(folder) for folder in arguments.val or arguments.images],
        "dataloader.train.dataset.image_size": size,
        "dataloader.test.dataset.image_size": size,
        "train.output_dir": arguments.output,
        "train.device": device,
        "model.layer": arguments.layer,
        "model.facet": arguments.facet,
    }
    if arguments.val is None:
        values |= {f"dataloader.{part}.dataset.holdout": 20 for part in ("train", "test")}
    if arguments.steps is not None:
        if arguments.steps < 1:
            raise ValueError(f"--steps {arguments.steps}: expected a positive number.")
        values["train.max_iter"] = arguments.steps
    if arguments.batch_size is not None:
        values["dataloader.train.total_batch_size"] = arguments.batch_size
    if device == "cpu":
        values["train.ddp.device_ids"] = None
    return values


def _backbone(arguments: argparse.Namespace) -> dict[str, object]:
    """The ViT's part of the config, and what LiFT has to know of it."""
    import timm
    import torch

    from lift_det.modeling.timm_vit import check_plain_vit

    checkpoint = arguments.backbone if os.path.sep in arguments.backbone or os.path.isfile(arguments.backbone) else ""
    if not checkpoint and arguments.backbone.endswith((".pth", ".pt", ".tar", ".bin", ".safetensors", ".pkl")):
        checkpoint = arguments.backbone
    if checkpoint:
        name, extra = _architecture(checkpoint, arguments.architecture)
    else:
        if arguments.architecture:
            raise ValueError("--architecture belongs to a checkpoint; --backbone is already a name.")
        name, extra = arguments.backbone, {}
    if arguments.num_heads:
        extra["model.net.num_heads"] = arguments.num_heads
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no model '{name}', and there is no file of that name.")
    check_plain_vit(name)
    with torch.device("meta"):  # sizes alone: nothing is allocated
        model = timm.create_model(name)
    facts = {"model.lift.in_channels": model.embed_dim, "model.lift.patch_size": model.patch_embed.patch_size[0]}
    net = {"model.net.name": name, "model.net.pretrained": not checkpoint, "model.net.checkpoint": checkpoint}
    return {**net, **facts, **extra}


def _architecture(path: str, named: str | None) -> tuple[str, dict[str, object]]:
    """timm's name of the ViT in a file, and what its config needs besides.

    The sizes are in the file. The number of heads is not, so a name is given only for releases which have one number of
    heads for each size; for others the user has to say it.
    """
    from lift_det.checkpoint import CheckpointError, convert_vit, read_state_dict

    state, report = convert_vit(read_state_dict(path)[0])
    extra: dict[str, object] = {}
    if report.format == "mocov3":
        # its ViTs have names of other weights in timm: those weights' image statistics are not to be taken
        extra["model.pixel_mean"], extra["model.pixel_std"] = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
        extra["model.net.num_heads"] = 12
    if named:
        return named, extra
    stem = state.get("patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    size = _SIZES.get((stem.shape[0], len(blocks))) if stem is not None else None
    if size is None:
        raise CheckpointError(
            f"'{path}' (format: {report.format}) is of no usual size: say --architecture, timm's name of its ViT."
        )
    patch = stem.shape[-1]
    registers = f"_reg{state['reg_token'].shape[1]}" if "reg_token" in state else ""
    if "blocks.0.ls1.gamma" in state and patch == 14:
        return f"vit_{size}_patch14{registers}_dinov2.lvd142m", extra
    names = {
        "dino": f"vit_{size}_patch{patch}_224.dino",
        "mae": f"vit_{size}_patch{patch}_224.mae",
        # what proves the format is the token of distillation
        "deit": f"deit_{size}_distilled_patch{patch}_224.fb_in1k",
        "mocov3": f"vit_{size}_patch{patch}_224",
    }
    if report.format not in names:
        raise CheckpointError(
            f"'{path}' (format: {report.format}) is a ViT of width {stem.shape[0]} with {len(blocks)} blocks and "
            f"patches of {patch} pixels. Its number of heads and its images' statistics are not in the file: say "
            f"--architecture, timm's name of the ViT, such as vit_{size}_patch{patch}_224.dino."
        )
    return names[report.format], extra


def _train(values: dict[str, object], output: str, resume: bool, opts: list[str]) -> None:
    """What each process runs."""
    from detectron2.config import LazyCall, LazyConfig, instantiate
    from detectron2.engine import default_setup
    from omegaconf import OmegaConf

    from lift_det import model_zoo
    from lift_det.engine import ProgressBar, do_train

    on_cpu = values["train.device"] == "cpu"
    cfg = model_zoo.get_config("LiFT/lift_vits14_cpu.py" if on_cpu else "common/lift_training.py")
    own_statistics = {"model.pixel_mean": None, "model.pixel_std": None}
    for name, value in {**own_statistics, **values}.items():
        OmegaConf.update(cfg, name, value, merge=False, force_add=True)
    cfg = LazyConfig.apply_overrides(cfg, opts)
    cfg.train.output_dir = output  # where the table is read
    train = cfg.dataloader.train
    try:
        images = len(instantiate(train.dataset))
    except ValueError as error:
        raise ValueError(f"{error}\nWith few images name others for the evaluation: --val.") from error
    if cfg.train.max_iter * train.total_batch_size <= images * max(1, train.dataset.get("views", 0)):
        # no version of an image would come a second time: nothing to keep, and no reason to limit them
        cfg.model.feature_cache, train.dataset.views = "", 0
    # evaluated once, at the end, as the table says; a shorter training warms up for as large a share of it
    cfg.train.eval_period = cfg.train.max_iter
    cfg.train.hooks = [LazyCall(ProgressBar)()]
    arguments = argparse.Namespace(config_file="", opts=opts, eval_only=False, resume=resume, num_gpus=1)
    _keep_terminal_clear(output)
    default_setup(cfg, arguments)
    do_train(arguments, cfg)


def _keep_terminal_clear(output: str) -> None:
    """detectron2's log goes to the file, of which the terminal shows warnings and errors: there is a progress bar."""
    import logging

    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    # the calls of default_setup, which then finds them done (they are cached by their arguments)
    loggers = [setup_logger(output, distributed_rank=comm.get_rank(), name="fvcore")]
    loggers.append(setup_logger(output, distributed_rank=comm.get_rank()))
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.setLevel(logging.WARNING)


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
