"""Trains a detector on a dataset in COCO's format.

examples:
  lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_train.json:images/ --val my_val.json:images/
  lift-det train CONFIG --dataset my_train.json:images/ --check
  lift-det train CONFIG --dataset my_train.json:images/ --weights model_final.pth --epochs 20 --num-gpus 4 \\
      train.trainer.accumulate=2 train.trainer.ema_decay=0.9998

The annotations are checked first. Classes, schedule and learning rate are fitted to the data, and printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from typing import Any

from .arguments import UsageError, add_training_arguments, choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="LazyConfig of a detector: a path or a name from `lift-det configs`"
    )
    parser.add_argument("--dataset", required=True, metavar="JSON:IMAGES", help="annotations and folder of images")
    parser.add_argument(
        "--val", metavar="JSON:IMAGES", help="evaluation set (default: every 10th image of --dataset is held out)"
    )
    parser.add_argument("--output", metavar="DIR", help="(default: output/NAME for a config NAME)")
    parser.add_argument("--check", action="store_true", help="only check the data and print the fitted settings")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint to start from (default: from the config)")
    parser.add_argument("--lift", metavar="FILE", help="LiFT trained for the same ViT, such as lift.safetensors")
    parser.add_argument("--epochs", type=float, help="length of the training (default: from the config)")
    parser.add_argument("--learning-rate", type=float, help="(default: from the config, scaled with the batch size)")
    parser.add_argument("--num-machines", type=int, default=1, help="(default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 (default: 0)")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of the first machine (default: auto)")
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Checks the data, and starts the training."""
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
    """Runs in each process."""
    from detectron2.utils import comm

    from lift_det.engine import do_train
    from lift_det.evaluation import recorded_result, result_table

    from .terminal import set_up

    # only one process reads and checks the data
    cfg = comm.all_gather(_prepare(arguments) if comm.is_main_process() else None)[0]
    setup = set_up(cfg, arguments.overrides, arguments.resume)
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's tables
        do_train(setup, cfg)
    if comm.is_main_process():
        output = cfg.train.output_dir
        print(f"\n{result_table(recorded_result(output))}\n\nWritten: {output}. Next:")
        print(f"  lift-det eval {output}\n  lift-det plot {output}")
        print(f"  lift-det predict IMAGES --from {output} --output {os.path.join(output, 'predictions')}")


def _prepare(arguments: argparse.Namespace) -> Any:
    """Returns the config, fitted to the data."""
    from omegaconf import DictConfig

    from lift_det import config
    from lift_det.engine import fit_config

    cfg = config.load(arguments.config)
    if not isinstance(cfg, DictConfig) or "roi_heads" not in cfg.get("model", {}):
        raise UsageError(f"'{arguments.config}' is not a LazyConfig of a detector; `lift-det configs` lists some")
    output = arguments.output or os.path.join("output", os.path.splitext(os.path.basename(arguments.config))[0])
    cfg.train.output_dir = output
    fit_config(
        cfg,
        arguments.dataset,
        arguments.val,
        # --check must not change the data of a training
        data_folder=os.path.join(output, "check" if arguments.check else "data"),
        weights=arguments.weights,
        lift=arguments.lift,
        device=arguments.device,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        learning_rate=arguments.learning_rate,
        log=lambda text: print(f"{text}\n", flush=True),
    )
    return config.apply_overrides(cfg, arguments.overrides)
