"""Hooks for ``train.hooks``."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm

from .trainer import evaluated_model

logger = logging.getLogger(f"detectron2.{__name__}")


class BestCheckpoint(HookBase):
    """Saves the evaluated weights as ``model_best.pth`` whenever a metric improves.

    Unlike detectron2's ``BestCheckpointer`` it does not touch ``last_checkpoint``, so ``--resume`` continues from the
    last state and not from the best. In a config::

        train.hooks = [L(BestCheckpoint)(metric="segm/AP")]
    """

    def __init__(self, metric: str = "bbox/AP", mode: str = "max") -> None:
        """
        Args:
            metric: as named in ``metrics.json``.
            mode: ``"max"`` if higher values are better, ``"min"`` if lower values are.

        Raises:
            ValueError: unknown mode. The first evaluation raises it if it does not have the metric.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode: expected 'max' or 'min', got '{mode}'.")
        self.metric = metric
        self.mode = mode
        self.best = -math.inf if mode == "max" else math.inf
        self._seen: dict[str, Any] | None = None

    def before_train(self) -> None:
        path = os.path.join(self.trainer.checkpointer.save_dir, "model_best.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if kept.get("metric") == self.metric:
                self.best = kept["value"]
                logger.info("The best %s so far is %.5f ('%s').", self.metric, self.best, path)

    def after_step(self) -> None:
        results = self.trainer.evaluated
        if results is self._seen:  # no new evaluation
            return
        self._seen = results
        # only the main process has results, but all processes have to stop
        problem = comm.all_gather(self._problem(results))[0]
        if problem:
            raise ValueError(problem)
        if not comm.is_main_process():
            return
        value = results.get(self.metric, math.nan)
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        improved = value > self.best if self.mode == "max" else value < self.best  # False for NaN
        if not improved:
            logger.info("%s after iteration %d: %.5f (best: %.5f).", self.metric, iteration, value, self.best)
            return
        self.best = value
        logger.info("%s after iteration %d: %.5f, the best so far.", self.metric, iteration, value)
        self.trainer.checkpointer.save_weights(
            "model_best", evaluated_model(self.trainer), metric=self.metric, value=value, iteration=iteration
        )

    after_train = after_step  # the last evaluation runs after the training

    def _problem(self, results: dict[str, Any]) -> str:
        # while a model detects nothing, COCO's evaluators return no metrics for masks
        nothing_detected = bool(results) and all(map(math.isnan, results.values()))
        if nothing_detected or self.metric in results or not comm.is_main_process():
            return ""
        names = ", ".join(results) or "none (the config has no dataloader.evaluator)"
        return f"BestCheckpoint(metric='{self.metric}'): the evaluation does not have this metric. It has: {names}."


class ProgressBar(HookBase):
    """Shows iterations, remaining time and loss on standard error, in the main process."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def before_train(self) -> None:
        total, initial = self.trainer.max_iter, self.trainer.start_iter
        self._bar = tqdm(total=total, initial=initial, unit="step", disable=not comm.is_main_process())

    def after_step(self) -> None:
        losses = self.trainer.storage.histories().get("total_loss")
        if losses is not None:
            self._bar.set_postfix_str(f"loss {losses.median(20):.4f}", refresh=False)
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.set_description("evaluating")

    def after_train(self) -> None:
        if self._bar is not None:  # another hook may have failed before this one started
            self._bar.close()
