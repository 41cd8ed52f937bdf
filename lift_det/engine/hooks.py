"""Hooks for `train.hooks`, and those that do_train itself registers."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from .trainer import averaged_weights

logger = logging.getLogger(f"detectron2.{__name__}")


class EvalHook(hooks.EvalHook):
    """detectron2's, which would evaluate at the end of a training that failed in its last iteration, too."""

    def after_train(self) -> None:
        self._eval_after_train = self.trainer.iter >= self.trainer.max_iter
        super().after_train()


class SaveAverages(HookBase):
    """Writes the averaged weights of a :class:`Trainer` as ``model_ema.pth`` when the last iteration is done."""

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.max_iter - 1:
            with averaged_weights(self.trainer):
                self.trainer.checkpointer.save_weights("model_ema", iteration=self.trainer.iter)


class BestCheckpoint(HookBase):
    """Keeps the weights of the best evaluation so far as ``model_best.pth``.

    They are what was evaluated: the averaged weights where the trainer averages. The file has the weights alone
    (``{"model": …}``, and which figure they had), and ``last_checkpoint`` does not point at it, so that ``--resume``
    goes on from the last state and not from the best, as it does with detectron2's ``BestCheckpointer``. A resumed
    training reads from the file how good it was; a new one in the same folder replaces it at its first evaluation.

    In a config::

        train.hooks = [L(BestCheckpoint)(metric="segm/AP")]
    """

    def __init__(self, metric: str = "bbox/AP", mode: str = "max", file_name: str = "model_best") -> None:
        """
        Args:
            metric: a figure of the evaluation, as ``metrics.json`` names it.
            mode: whether ``"max"`` or ``"min"`` is best.
            file_name: of the file in ``train.output_dir``, without ``.pth``.

        Raises:
            ValueError: another mode; in training, at the first evaluation, that it has no such figure.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode: expected 'max' or 'min', got '{mode}'.")
        self.metric = metric
        self.mode = mode
        self.file_name = file_name
        #: the best value so far
        self.best: float | None = None
        self._seen: dict[str, Any] | None = None

    def before_train(self) -> None:
        path = os.path.join(self.trainer.checkpointer.save_dir, f"{self.file_name}.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if kept.get("metric") == self.metric:
                self.best = kept["value"]
                logger.info("The best %s so far is %.5f, of '%s'.", self.metric, self.best, path)

    def after_step(self) -> None:
        self._look()

    def after_train(self) -> None:
        self._look()

    def _look(self) -> None:
        results = self.trainer.evaluated
        if results is self._seen:  # no evaluation since
            return
        self._seen = results
        # the figures are the main process's, and its error is to be everyone's
        problem = comm.all_gather(self._problem(results))[0]
        if problem:
            raise ValueError(problem)
        if not comm.is_main_process():
            return
        value, iteration = results.get(self.metric, math.nan), min(self.trainer.iter, self.trainer.max_iter - 1)
        if math.isnan(value) or (self.best is not None and not self._better(value)):
            best = "there is no better yet" if self.best is None else f"the best is {self.best:.5f}"
            logger.info("%s is %.5f after iteration %d; %s.", self.metric, value, iteration, best)
            return
        self.best = value
        logger.info("%s is %.5f after iteration %d, the best so far.", self.metric, value, iteration)
        with averaged_weights(self.trainer):
            self.trainer.checkpointer.save_weights(self.file_name, metric=self.metric, value=value, iteration=iteration)

    def _better(self, value: float) -> bool:
        return value > self.best if self.mode == "max" else value < self.best

    def _problem(self, results: dict[str, Any]) -> str:
        # where a model finds nothing at all yet, COCO's evaluators name the boxes' figures alone
        nothing = bool(results) and all(map(math.isnan, results.values()))
        if nothing or self.metric in results or not comm.is_main_process():
            return ""
        known = ", ".join(results) or "nothing at all: there is no dataloader.evaluator"
        return f"BestCheckpoint(metric='{self.metric}'): the evaluation has no such figure. It gave {known}."
