"""Training and evaluation from a LazyConfig: detectron2's loop, with the trainer and the hooks a config states."""

from __future__ import annotations

import argparse
import logging
import os
import weakref
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers, defaults, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from .checkpointer import Checkpointer
from .hooks import EvalHook, SaveAverages
from .trained_model import WEIGHT_FILES
from .trainer import Trainer, averaged_weights

logger = logging.getLogger(f"detectron2.{__name__}")


def do_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluates a model on ``cfg.dataloader.test`` with ``cfg.dataloader.evaluator``; nothing where there is none."""
    if "evaluator" not in cfg.dataloader:
        return {}
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def create_ddp_model(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """detectron2's, with those options of ``cfg.train.ddp`` that fit the device and the trainer.

    A CPU has no device ids. Gradients go as float16 (``fp16_compression``) only where they are scaled for it, which
    they are not on a CPU, nor by a :class:`Trainer` of another precision.
    """
    options = dict(cfg.train.ddp)
    on_cpu = str(cfg.train.device) == "cpu"
    if on_cpu:
        options["device_ids"] = None
    trainer_class, stated = _stated_trainer(cfg)
    if on_cpu or (issubclass(trainer_class, Trainer) and stated.get("precision") != "float16"):
        options["fp16_compression"] = False
    return defaults.create_ddp_model(model, **options)


def do_train(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Trains what a LazyConfig describes.

    Beside what detectron2's own ``tools/lazyconfig_train_net.py`` reads, a config may state

    - ``train.trainer``: a LazyCall of :class:`Trainer` or another ``SimpleTrainer`` (sub)class without its model,
      loader and optimizer; options alone (``train.trainer.accumulate=4`` on a command line) are :class:`Trainer`'s;
    - ``train.hooks``: a list of LazyCalls of hooks, run after each evaluation and before the metrics are written. They
      find on their trainer its ``checkpointer`` and, once there was an evaluation, its figures as ``evaluated``
      (``{"bbox/AP": …}``, empty but on the main process).

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
    model = create_ddp_model(cfg, model)
    trainer = _build_trainer(cfg, model, loader, optimizer)
    trainer.checkpointer = checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=weakref.proxy(trainer))
    trainer.evaluated = None

    def evaluate() -> dict[str, Any]:
        with averaged_weights(trainer):
            results = do_test(cfg, model)
        trainer.evaluated = flatten_results_dict(results)
        return results

    main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            SaveAverages() if main and getattr(trainer, "ema", None) else None,
            EvalHook(cfg.train.eval_period, evaluate),
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
    if main and start == 0:
        _set_aside(cfg.train.output_dir)
    trainer.train(start, cfg.train.max_iter)


def _set_aside(folder: str) -> None:
    """Renames what an earlier training in the same folder has left as its best: it would be taken for this one's."""
    for name in WEIGHT_FILES:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            os.replace(path, f"{path}.old")
            logger.warning("'%s' is of an earlier training: renamed to '%s.old'.", path, name)


def _stated_trainer(cfg: DictConfig) -> tuple[type[SimpleTrainer], dict[str, Any]]:
    """The class of the trainer, and the options that the config states for it."""
    stated = dict(cfg.train.get("trainer") or {"_target_": AMPTrainer if cfg.train.amp.enabled else SimpleTrainer})
    target = stated.pop("_target_", Trainer)
    target = locate(target) if isinstance(target, str) else target
    if issubclass(target, Trainer) and cfg.train.amp.enabled:
        stated.setdefault("precision", "float16")  # as detectron2's own AMP
    return target, stated


def _build_trainer(cfg: DictConfig, model: nn.Module, loader: Any, optimizer: Any) -> SimpleTrainer:
    trainer_class, stated = _stated_trainer(cfg)
    trainer = trainer_class(model, loader, optimizer, **{key: instantiate(value) for key, value in stated.items()})
    if cfg.train.amp.enabled and isinstance(trainer, Trainer) and trainer.precision == "float32":
        raise ValueError(
            "train.amp.enabled=True asks for mixed precision, and train.trainer for float32. The trainer's word "
            "counts: state train.trainer.precision=bfloat16 or float16, or train.amp.enabled=False."
        )
    return trainer
