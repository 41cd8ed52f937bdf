"""`lift-det train`: trains a config's detector on one's own data in COCO's format."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from typing import Any

from .arguments import UsageError, accept_overrides, apply_overrides, choose_device, find_config

_EPILOG = """\
examples:
  lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_train.json:images/ --val my_val.json:images/
  lift-det train CONFIG --dataset my_train.json:images/ --check
  lift-det train CONFIG --dataset my_train.json:images/ --weights model_final.pth --epochs 20 --num-gpus 4 \\
      train.trainer.accumulate=2 train.trainer.ema_decay=0.9998

The annotations are checked first, and a page says what is wrong with them: what is left out, and what has to be mended.
Classes, schedule and learning rate are fitted to the data by rules that are printed. What comes out is what any
training of detectron2 leaves; `lift-det eval OUTPUT` and `lift-det predict IMAGE --from OUTPUT` read it.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `train` to the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a detector on your own data in COCO's format",
        description="Checks a data set, fits a config to it, and trains.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a LazyConfig: a path, or a name of `lift-det configs`")
    parser.add_argument("--dataset", required=True, metavar="JSON:IMAGES", help="annotations, and the folder of images")
    parser.add_argument("--val", metavar="JSON:IMAGES", help="to evaluate on (left out: every 10th image of --dataset)")
    parser.add_argument("--output", metavar="DIR", help="(output/ and the config's name)")
    parser.add_argument("--check", action="store_true", help="check the data, say what would be done, and stop")
    parser.add_argument("--weights", metavar="FILE", help="start from these (the config's)")
    parser.add_argument("--batch-size", type=int, help="images in an iteration, over all processes (the config's)")
    parser.add_argument("--epochs", type=float, help="(as many as the config's)")
    parser.add_argument("--iterations", type=int, help="in place of --epochs")
    parser.add_argument("--learning-rate", type=float, help="(the config's, scaled with the batch)")
    parser.add_argument("--device", help="cuda or cpu (cuda where there is one)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one for each GPU (1)")
    parser.add_argument("--num-machines", type=int, default=1, help="(1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="where the machines meet: tcp://HOST:PORT")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    accept_overrides(parser, "opts")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check and train; an error if the data cannot be used."""
    from lift_det.engine import launch

    arguments.device = choose_device(arguments)
    if arguments.check:
        _prepare(arguments)
        return 0
    launch(
        _train,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
    return 0


def _train(arguments: argparse.Namespace) -> None:
    """What each process runs."""
    from detectron2.engine import default_setup
    from detectron2.utils import comm

    from lift_det.engine import do_train

    from .terminal import keep_terminal_clear

    # one process reads and checks the data, the others are told
    cfg = comm.all_gather(_prepare(arguments) if comm.is_main_process() else None)[0]
    keep_terminal_clear(cfg.train.output_dir)
    # default_setup asks for these
    setup = argparse.Namespace(config_file="", opts=arguments.opts, eval_only=False, resume=arguments.resume)
    default_setup(cfg, setup)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's tables; the figures are in metrics.json
        do_train(setup, cfg)
    if comm.is_main_process():
        print(_closing(cfg.train.output_dir))


def _prepare(arguments: argparse.Namespace) -> Any:
    """The config for this data, after a page on the data and the rules that were followed."""
    import torch
    from detectron2.config import CfgNode, LazyCall

    from lift_det.engine import BestCheckpoint, ProgressBar, Trainer, own_data
    from lift_det.engine.trained_model import read_config
    from lift_det.evaluation import PredictionPictures

    path = find_config(arguments.config)
    cfg = read_config(path)
    if isinstance(cfg, CfgNode) or "roi_heads" not in cfg.model:
        raise UsageError(f"'{path}' is no LazyConfig of a detector: `lift-det configs` lists those that are.")
    output = arguments.output or os.path.join("output", os.path.splitext(os.path.basename(path))[0])
    cfg.train.output_dir = output
    # two annotation files may have one name; and a check leaves alone what a training reads
    data = os.path.join(output, "check" if arguments.check else "data")
    train_folder, val_folder = os.path.join(data, "train"), os.path.join(data, "val")

    train = own_data.check_own_coco(arguments.dataset, train_folder)
    if arguments.val:
        val = own_data.check_own_coco(arguments.val, val_folder, train.categories)
    else:
        train, val = own_data.hold_out(train)
        held_out = f"{val.num_images} images, every 10th, are held out for the evaluation (no --val)"
    train, val = own_data.own_coco(train, train_folder), own_data.own_coco(val, val_folder)

    if arguments.weights:
        is_url = "://" in arguments.weights
        cfg.train.init_checkpoint = arguments.weights if is_url else os.path.abspath(arguments.weights)
    precision = "float32"
    if cfg.train.amp.enabled and arguments.device != "cpu":
        precision = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    said = own_data.fit_schedule(
        cfg,
        train.num_images,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        learning_rate=arguments.learning_rate,
    )
    said = [*([] if arguments.val else [held_out]), *own_data.fit_classes(cfg, train), *said]
    own_data.use_dataset(cfg, "train", train)
    own_data.use_dataset(cfg, "test", val)
    cfg.dataloader.evaluator.output_dir = "${train.output_dir}/inference"
    cfg.train.device = arguments.device
    cfg.train.amp.enabled = precision != "float32"
    # all of its options, so that each can be overridden
    if "trainer" not in cfg.train:
        cfg.train.trainer = LazyCall(Trainer)(
            accumulate=1, clip_norm=None, clip_value=None, precision=precision, ema_decay=None
        )
    with_masks = "mask_head" in cfg.model.roi_heads and val.masks != "none"
    # stated, because an evaluator that is given no prediction cannot tell
    cfg.dataloader.evaluator.tasks = ["bbox", "segm"] if with_masks else ["bbox"]
    own_hooks = (BestCheckpoint, PredictionPictures, ProgressBar)  # a config that this command has saved has them
    cfg.train.hooks = [
        *(hook for hook in cfg.train.get("hooks", []) if _class_of(hook) not in own_hooks),
        LazyCall(BestCheckpoint)(metric="segm/AP" if with_masks else "bbox/AP"),
        LazyCall(PredictionPictures)(
            dataset="${dataloader.test.dataset}",
            dataset_name="${dataloader.test.dataset.names}",
            mapper="${dataloader.test.mapper}",
            period="${train.eval_period}",
        ),
        LazyCall(ProgressBar)(),
    ]
    print("\n".join([f"\nFitted to the data, from {path}:", *(f"  {line}" for line in said)]), flush=True)
    return apply_overrides(cfg, arguments.opts)


def _class_of(hook: Any) -> type:
    from detectron2.utils.registry import locate

    return locate(hook._target_) if isinstance(hook._target_, str) else hook._target_


def _closing(output: str) -> str:
    """What came out, and what to do next."""
    from lift_det.evaluation import recorded_result, result_table

    return (
        f"\n{result_table(recorded_result(output))}\n\n"
        f"In {output}: checkpoints (the best is model_best.pth), metrics.json, config.yaml. Next:\n"
        f"  lift-det eval {output}\n"
        f"  lift-det plot {output}\n"
        f"  lift-det predict IMAGES --from {output} --output {os.path.join(output, 'predictions')}"
    )
