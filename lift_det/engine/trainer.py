"""detectron2's trainer with what a config may ask of it besides: large batches in parts, clipping, averaged weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpointer import Checkpointer
from .ema import EMA
from .optim import ClippedAdamW

logger = logging.getLogger(f"detectron2.{__name__}")

PRECISIONS = ("float32", "bfloat16", "float16")


class Trainer(SimpleTrainer):
    """:class:`detectron2.engine.SimpleTrainer` with accumulation, clipping, mixed precision and averaged weights.

    In a config::

        train.trainer = L(Trainer)(accumulate=4, clip_norm=1.0, precision="bfloat16", ema_decay=0.9998)

    It logs the norm of the gradients, before clipping, as ``grad_norm``. A loss or a gradient that is not finite ends
    the training at once, before anything is changed by it, with the names of the images that it comes from.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Sequence[Any]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        precision: str = "float32",
        ema_decay: float | None = None,
        gather_metric_period: int = 1,
    ) -> None:
        """
        Args:
            model, data_loader, optimizer, gather_metric_period: as upstream's.
            accumulate: computes each batch in so many parts, one after another, so that a GPU holds only one; their
                gradients are added up, each loss weighted with its part's share of the batch. The loader's batch
                (``total_batch_size``) stays what the optimizer sees, so the schedule and the learning rate need no
                change. Parts are as equal as can be (10 images in 4 parts: 2, 3, 2, 3); of a batch of fewer images
                each is a part. Where a loss is a mean over the images the gradients are the whole batch's. They are
                not where it is a mean over what the images hold (a detector's RoIs and foreground), and BatchNorm that
                is not frozen sees a part at a time.
            clip_norm: scales the gradients of a step down to a common L2 norm of at most this.
                :class:`ClippedAdamW` does so too, and under detectron2's unmodified tool as well; one of them is
                enough: prefer this where only this tool trains, as any optimizer does then, and the norm is logged.
            clip_value: limits each entry of the gradients to between -clip_value and clip_value instead.
            precision: "float32"; "bfloat16", autocast on any device; "float16", autocast with scaled gradients, on a
                GPU alone.
            ema_decay: averages the weights exponentially (see :class:`EMA`), evaluates the averaged ones and writes
                them as ``model_ema.pth`` at the end. None: no average.

        Raises:
            ValueError: an option that is out of range, is not for this device, or would clip twice.
        """
        super().__init__(model, data_loader, optimizer, gather_metric_period=gather_metric_period)
        self.device = next(model.parameters()).device
        if accumulate < 1:
            raise ValueError(f"accumulate: expected a number of parts from 1 on, got {accumulate}.")
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}: expected a positive number, or None for no clipping, got {limit}.")
        if clip_norm is not None and clip_value is not None:
            raise ValueError("clip_norm and clip_value exclude each other: state one.")
        if clip_norm is not None and isinstance(optimizer, ClippedAdamW):
            raise ValueError(
                f"Both train.trainer.clip_norm={clip_norm:g} and optimizer.max_norm={optimizer.max_norm:g} "
                "(ClippedAdamW) clip the gradients' norm: leave clip_norm out, or state torch.optim.AdamW."
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got '{precision}'.")
        if precision == "float16" and self.device.type != "cuda":
            raise ValueError(f"precision='float16' needs a GPU; on '{self.device.type}' take 'bfloat16' or 'float32'.")
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.precision = precision
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.ema = EMA(model, ema_decay) if ema_decay is not None else None
        #: where the training's checkpoints are; do_train sets it
        self.checkpointer: Checkpointer | None = None

    def run_step(self) -> None:
        """One step of the optimizer."""
        assert self.model.training, "A hook has left the model in evaluation mode."
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._add_up_gradients(batch)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._clip(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()

    def _add_up_gradients(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Goes forward and backward part by part; returns the losses of the whole batch."""
        parts = _split(batch, self.accumulate)
        if self.iter == self.start_iter and self.accumulate > 1:
            logger.info("A batch of %d images is computed in parts of %s.", len(batch), [len(part) for part in parts])
        whole: dict[str, Tensor] = {}
        for part in parts:
            share = len(part) / len(batch)
            with self._communicating(part is parts[-1]):
                with torch.autocast(
                    self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32"
                ):
                    losses = self.model(part)
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                total = sum(losses.values())
                self._check_loss(total, losses, part)
                self.scaler.scale(share * total).backward()
            for name, loss in losses.items():
                whole[name] = whole.get(name, 0.0) + share * loss.detach()
        return whole

    def _communicating(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once for each batch, with its last part."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _clip(self, batch: Sequence[Any]) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or math.inf).item()
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, self.clip_value)
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        elif not self.scaler.is_enabled():  # which skips such a step and scales less
            # the same in every process, because gradients are
            self._fail(f"gradients have a norm of {norm:g}", f"one of these images:{_names(batch)}")

    def _check_loss(self, total: Tensor, losses: Mapping[str, Tensor], part: Sequence[Any]) -> None:
        failed = (~total.detach().isfinite()).float()
        if comm.get_world_size() > 1:
            # all of them end, and in the same place: one that waits for the others' gradients would wait for long
            everywhere = failed.clone()
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MAX)
        else:
            everywhere = failed
        if everywhere:
            values = ", ".join(f"{name}={loss.item():g}" for name, loss in losses.items())
            self._fail("losses are not finite", f"{values} on these images:{_names(part)}" if failed else "")

    def _fail(self, what: str, mine: str) -> None:
        """Ends the training, in all processes; ``mine`` is what this one knows of it."""
        known = "\n".join(text for text in comm.all_gather(mine) if text)
        if self.checkpointer is not None and self.checkpointer.has_checkpoint():
            last = f"The last checkpoint is '{self.checkpointer.get_checkpoint_file()}': --resume goes on from there."
        else:
            last = "There is no checkpoint yet (train.checkpointer.period)."
        raise FloatingPointError(
            f"The {what} at iteration {self.iter}: {known}\n"
            f"The weights were not changed by them, and nothing was written. {last} Look at these images and their "
            "annotations; where they are right, clip the gradients (train.trainer.clip_norm), or start anew with a "
            "lower optimizer.lr, which --resume would not take up."
        )

    def state_dict(self) -> dict[str, Any]:
        """Upstream's, the gradients' scale (under AMPTrainer's name for it), and the average."""
        state = super().state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint; one without an average begins it anew, with a warning."""
        super().load_state_dict(state_dict)
        if "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])  # nothing where it is not enabled
        if self.ema is not None and "ema" in state_dict:
            self.ema.load_state_dict(state_dict["ema"])
        elif self.ema is not None:
            logger.warning("The checkpoint has no averaged weights: the average (ema_decay) begins with this resume.")
        elif "ema" in state_dict:
            logger.warning("The checkpoint's averaged weights are dropped: train.trainer.ema_decay is not stated.")


def averaged_weights(trainer: TrainerBase) -> AbstractContextManager[None]:
    """Within it the model of a :class:`Trainer` with an average has the averaged weights; any other's is as it is."""
    ema: EMA | None = getattr(trainer, "ema", None)
    return nullcontext() if ema is None else ema.applied()


def _split(batch: Sequence[Any], number: int) -> list[Sequence[Any]]:
    number = min(number, len(batch))
    bounds = [i * len(batch) // number for i in range(number + 1)]
    return [batch[start:end] for start, end in pairwise(bounds)]


def _names(images: Sequence[Any]) -> str:
    """A line for each image that says which it is."""
    lines = []
    for image in images:
        known = image if isinstance(image, Mapping) else {}
        number = f" (image id {known['image_id']})" if "image_id" in known else ""
        lines.append(f"\n  {known.get('file_name', 'an image without file_name')}{number}")
    return "".join(lines)
