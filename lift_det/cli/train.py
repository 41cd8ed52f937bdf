"""`lift-det train`: trains a config's detector on one's own data in COCO's format."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from typing import Any

from .arguments import UsageError, accept_overrides, choose_device

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
    parser.add_argument("--lift", metavar="FILE", help="a LiFT that was trained on this ViT, such as lift.safetensors")
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
    from detectron2.utils import comm

    from lift_det.engine import do_train

    from .terminal import set_up

    # one process reads and checks the data, the others are told
    cfg = comm.all_gather(_prepare(arguments) if comm.is_main_process() else None)[0]
    setup = set_up(cfg, arguments.opts, arguments.resume)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's tables; the figures are in metrics.json
        do_train(setup, cfg)
    if comm.is_main_process():
        print(_closing(cfg.train.output_dir))


def _prepare(arguments: argparse.Namespace) -> Any:
    """The config for this data, after a page on the data and the rules that were followed."""
    from omegaconf import DictConfig

    from lift_det import config
    from lift_det.engine import fit_config

    cfg = config.load(arguments.config)
    if not isinstance(cfg, DictConfig) or "roi_heads" not in cfg.get("model", {}):
        raise UsageError(
            f"'{arguments.config}' is no LazyConfig of a detector: `lift-det configs` lists those that are."
        )
    output = arguments.output or os.path.join("output", os.path.splitext(os.path.basename(arguments.config))[0])
    cfg.train.output_dir = output
    fit_config(
        cfg,
        arguments.dataset,
        arguments.val,
        # a check leaves alone what a training reads
        data_folder=os.path.join(output, "check" if arguments.check else "data"),
        weights=arguments.weights,
        lift=arguments.lift,
        device=arguments.device,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        learning_rate=arguments.learning_rate,
        say=lambda text: print(f"{text}\n", flush=True),
    )
    return config.apply_overrides(cfg, arguments.opts)


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
