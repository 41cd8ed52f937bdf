"""Training and evaluation from a LazyConfig: detectron2's loop, with the trainer and the hooks a config states."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from .checkpointer import Checkpointer

logger = logging.getLogger(f"detectron2.{__name__}")


def do_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluates a model on ``cfg.dataloader.test`` with ``cfg.dataloader.evaluator``; nothing where there is none."""
    if "evaluator" not in cfg.dataloader:
        return {}
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def do_train(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Trains what a LazyConfig describes.

    Beside what detectron2's own ``tools/lazyconfig_train_net.py`` reads, a config may state

    - ``train.trainer``: a LazyCall of a ``SimpleTrainer`` (sub)class without its model, loader and optimizer;
    - ``train.hooks``: a list of LazyCalls of hooks, run before the metrics are written.

    Args:
        args: ``args.resume`` goes on from the last checkpoint in ``cfg.train.output_dir``.
        cfg: the config.
    """
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = _build_trainer(cfg, model, loader, optimizer)
    checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=trainer)

    main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: do_test(cfg, model)),
            *(instantiate(hook) for hook in cfg.train.get("hooks", [])),
            # last, so that it writes what the others have measured
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), cfg.train.log_period)
            if main
            else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    # a checkpoint holds the iteration that it finished
    start = trainer.iter + 1 if args.resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)


def _build_trainer(cfg: DictConfig, model: nn.Module, loader: Any, optimizer: Any) -> TrainerBase:
    stated = dict(cfg.train.get("trainer") or {"_target_": AMPTrainer if cfg.train.amp.enabled else SimpleTrainer})
    target = stated.pop("_target_")
    trainer_class = locate(target) if isinstance(target, str) else target
    return trainer_class(model, loader, optimizer, **{key: instantiate(value) for key, value in stated.items()})
