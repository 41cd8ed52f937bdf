"""`lift-det pretrain`: trains LiFT for a pretrained ViT on a folder of images."""

from __future__ import annotations

import argparse
import os

from .arguments import accept_overrides, apply_overrides, choose_device

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
    from lift_det.engine import launch

    device = choose_device(arguments)
    launch(
        _train,
        arguments.num_gpus,
        dist_url="auto",
        args=(_config(arguments, device), arguments.output, arguments.resume, arguments.opts),
    )
    return 0


def _config(arguments: argparse.Namespace, device: str) -> dict[str, object]:
    """What of the config the command line sets: dotted names to values."""
    from lift_det.modeling import find_vit

    vit = find_vit(arguments.backbone, arguments.architecture, arguments.num_heads)
    size, patch = arguments.image_size or 448, vit.patch_size
    if arguments.image_size is None:
        size += -size % (4 * patch)
    elif size % (4 * patch):
        raise ValueError(f"--image-size {size}: with patches of {patch} pixels it has to be a multiple of {4 * patch}.")
    values = {f"model.net.{key}": value for key, value in vit.arguments().items()}
    if vit.pixel_mean is not None:
        values |= {"model.pixel_mean": list(vit.pixel_mean), "model.pixel_std": list(vit.pixel_std)}
    values |= {
        "model.lift.in_channels": vit.embed_dim,
        "model.lift.patch_size": patch,
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
    return values


def _train(values: dict[str, object], output: str, resume: bool, opts: list[str]) -> None:
    """What each process runs."""
    from detectron2.config import LazyCall, instantiate
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from omegaconf import OmegaConf

    from lift_det import model_zoo
    from lift_det.engine import ProgressBar, do_train

    from .terminal import keep_terminal_clear

    on_cpu = values["train.device"] == "cpu"
    cfg = model_zoo.get_config("LiFT/lift_vits14_cpu.py" if on_cpu else "common/lift_training.py")
    own_statistics = {"model.pixel_mean": None, "model.pixel_std": None}
    for name, value in {**own_statistics, **values}.items():
        OmegaConf.update(cfg, name, value, merge=False, force_add=True)
    cfg = apply_overrides(cfg, opts)
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
    keep_terminal_clear(output)
    default_setup(cfg, arguments)
    do_train(arguments, cfg)
    if comm.is_main_process():
        print(_closing(output))


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
