"""Training and evaluation of a LazyConfig, with one or several processes."""

from __future__ import annotations

import argparse
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers, defaults, hooks
from detectron2.engine import launch as _launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import distributed, nn

from .checkpointer import Checkpointer
from .trained_model import WEIGHT_FILES
from .trainer import Trainer, evaluated_model

logger = logging.getLogger(f"detectron2.{__name__}")


class _EvalHook(hooks.EvalHook):
    """Does not evaluate after a failure in the last iteration, such as a full disk at the last checkpoint."""

    def after_train(self) -> None:
        self._eval_after_train = self.trainer.iter >= self.trainer.max_iter
        super().after_train()


def do_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluates a model on ``cfg.dataloader.test``. Returns ``{}`` if there is no ``cfg.dataloader.evaluator``."""
    if "evaluator" not in cfg.dataloader:
        return {}
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def wrap_ddp(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Wraps a model in DistributedDataParallel with the options of ``cfg.train.ddp``, if there are several processes.

    On a CPU ``device_ids`` are removed. ``fp16_compression`` is only used if the gradients are scaled for float16.
    """
    options = dict(cfg.train.ddp)
    on_cpu = str(cfg.train.device) == "cpu"
    if on_cpu:
        options["device_ids"] = None
    trainer_class, trainer_options = _trainer_of(cfg)
    if on_cpu or (issubclass(trainer_class, Trainer) and trainer_options.get("precision") != "float16"):
        options["fp16_compression"] = False
    return defaults.create_ddp_model(model, **options)


def do_train(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Trains a LazyConfig.

    A config has the keys of detectron2's ``tools/lazyconfig_train_net.py``, and optionally

    - ``train.trainer``: a LazyCall of a ``SimpleTrainer`` class without ``model``, ``data_loader`` and ``optimizer``.
      Without a ``_target_``, as with the override ``train.trainer.accumulate=4``, it is :class:`Trainer`.
    - ``train.hooks``: LazyCalls of hooks, which run after the evaluation and before metrics are written. Their
      ``trainer`` has ``checkpointer`` and, in the main process, the last results as ``evaluated["bbox/AP"]``.

    Args:
        args: with ``args.resume``, the training continues from the last checkpoint in ``cfg.train.output_dir``.
        cfg: the config.
    """
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = wrap_ddp(cfg, model)
    trainer = _build_trainer(cfg, model, loader, optimizer)
    trainer.checkpointer = checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=weakref.proxy(trainer))
    trainer.evaluated = None

    def evaluate() -> dict[str, Any]:
        results = do_test(cfg, evaluated_model(trainer))
        trainer.evaluated = flatten_results_dict(results)
        return results

    is_main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
            _EvalHook(cfg.train.eval_period, evaluate),
            *(instantiate(hook) for hook in cfg.train.get("hooks", [])),
            # last, so that it writes the metrics of the other hooks
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), cfg.train.log_period)
            if is_main
            else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    # a checkpoint stores the number of its last finished iteration
    start = trainer.iter + 1 if args.resume and checkpointer.has_checkpoint() else 0
    if is_main and start == 0:
        _rename_earlier_weights(cfg.train.output_dir)
    trainer.train(start, cfg.train.max_iter)
    if is_main and getattr(trainer, "ema", None) is not None:
        checkpointer.save_weights("model_ema", trainer.ema.module, iteration=cfg.train.max_iter - 1)


def _rename_earlier_weights(folder: str) -> None:
    """Renames the best and the averaged weights of an earlier training, which predictions would use otherwise."""
    for name in WEIGHT_FILES:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            os.replace(path, f"{path}.old")
            logger.warning("'%s' belongs to an earlier training: renamed to '%s.old'.", path, name)


def _trainer_of(cfg: DictConfig) -> tuple[type[SimpleTrainer], dict[str, Any]]:
    """Returns the trainer's class and options."""
    options = dict(cfg.train.get("trainer") or {"_target_": AMPTrainer if cfg.train.amp.enabled else SimpleTrainer})
    target = options.pop("_target_", Trainer)
    target = locate(target) if isinstance(target, str) else target
    if issubclass(target, Trainer) and cfg.train.amp.enabled:
        options.setdefault("precision", "float16")  # as in detectron2's AMPTrainer
    return target, options


def _build_trainer(cfg: DictConfig, model: nn.Module, loader: Any, optimizer: Any) -> SimpleTrainer:
    trainer_class, options = _trainer_of(cfg)
    trainer = trainer_class(model, loader, optimizer, **{key: instantiate(value) for key, value in options.items()})
    if cfg.train.amp.enabled and isinstance(trainer, Trainer) and trainer.precision == "float32":
        raise ValueError(
            "train.amp.enabled=True contradicts train.trainer.precision=float32: set precision to bfloat16 or float16, "
            "or train.amp.enabled=False."
        )
    return trainer


def launch(
    main_func: Callable[..., None],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Drop-in for :func:`detectron2.engine.launch` that also works inside ``torchrun``.

    Inside torchrun each process calls ``main_func(*args)``, with one GPU per process and NCCL, or gloo without GPUs.

    Raises:
        ValueError: inside torchrun, numbers of processes are given or there are fewer GPUs than processes.
    """
    if not distributed.is_torchelastic_launched():
        _launch(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, tuple(args), timeout)
        return
    if (num_gpus_per_machine, num_machines, machine_rank) != (1, 1, 0):
        raise ValueError(
            "Inside torchrun leave out --num-gpus, --num-machines and --machine-rank (got "
            f"{num_gpus_per_machine}, {num_machines}, {machine_rank}): use torchrun's --nproc-per-node and --nnodes."
        )
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    has_gpu = torch.cuda.is_available()
    if has_gpu and local_size > torch.cuda.device_count():
        raise ValueError(
            f"torchrun --nproc-per-node {local_size}: each process needs a GPU, and this machine has "
            f"{torch.cuda.device_count()}. To train on CPUs set CUDA_VISIBLE_DEVICES=."
        )
    if has_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=timeout)
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main_func(*args)
    distributed.destroy_process_group()
