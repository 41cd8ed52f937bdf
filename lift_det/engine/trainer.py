"""A SimpleTrainer with gradient accumulation, clipping, mixed precision and averaged weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.utils import comm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpointer import Checkpointer
from .optim import ClippedAdamW

logger = logging.getLogger(f"detectron2.{__name__}")

PRECISIONS = ("float32", "bfloat16", "float16")


class Trainer(SimpleTrainer):
    """:class:`detectron2.engine.SimpleTrainer` with accumulation, clipping, mixed precision and averaged weights.

    In a config::

        train.trainer = L(Trainer)(accumulate=4, clip_norm=1.0, precision="bfloat16", ema_decay=0.9998)

    The norm of the gradients before clipping is logged as ``grad_norm``. A loss or a gradient that is not finite stops
    the training before the weights change, and the error names the images. ``ema.module`` is the averaged model.

    Args:
        model, data_loader, optimizer, gather_metric_period: see :class:`detectron2.engine.SimpleTrainer`.
        accumulate: computes each batch in this many parts, one after another, to save memory. The gradients equal those
            of the whole batch if the loss is a mean over images. A detector's losses are means over RoIs and anchors,
            and BatchNorm sees one part at a time, so their gradients differ.
        clip_norm: largest L2 norm of all gradients together. Not for :class:`ClippedAdamW`, which clips itself.
        clip_value: largest absolute value of each gradient entry; instead of ``clip_norm``.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"float16"`` (autocast and loss scaling, GPU only).
        ema_decay: decay of an exponential moving average of the weights, such as 0.9998. After ``t`` steps it is
            ``min(ema_decay, (1 + t) / (10 + t))``. The averaged weights are evaluated, and saved as ``model_ema.pth``
            at the end. None keeps no average.

    Raises:
        ValueError: an option is out of range, is not supported on this device, or would clip twice.
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
        super().__init__(model, data_loader, optimizer, gather_metric_period=gather_metric_period)
        self.device = next(model.parameters()).device
        if accumulate < 1:
            raise ValueError(f"accumulate: expected at least 1 part, got {accumulate}.")
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}: expected a positive number, or None for no clipping, got {limit}.")
        if clip_norm is not None and clip_value is not None:
            raise ValueError("clip_norm and clip_value exclude each other: set only one of them.")
        if clip_norm is not None and isinstance(optimizer, ClippedAdamW):
            raise ValueError(
                f"train.trainer.clip_norm={clip_norm:g} and ClippedAdamW (optimizer.max_norm={optimizer.max_norm:g}) "
                "both clip the gradients: remove clip_norm, or use torch.optim.AdamW."
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got '{precision}'.")
        if precision == "float16" and self.device.type != "cuda":
            raise ValueError(f"precision='float16' needs a GPU; on '{self.device.type}' use 'bfloat16' or 'float32'.")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number between 0 and 1, such as 0.9998, got {ema_decay}.")
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.precision = precision
        self.ema_decay = ema_decay
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.ema: ModelEmaV3 | None = None
        self._ema_updates = 0
        #: set by do_train
        self.checkpointer: Checkpointer | None = None

    def run_step(self) -> None:
        """One step of the optimizer."""
        assert self.model.training, "A hook has left the model in evaluation mode."
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._accumulate_gradients(batch)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._clip(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema_decay is not None:
            if self.ema is None:
                self.ema = self._new_average()
            else:
                self.ema.update(_unwrap(self.model), step=self._ema_updates)
            self._ema_updates += 1

    def _accumulate_gradients(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Runs forward and backward on each part, and returns the losses of the whole batch."""
        parts = _split(batch, self.accumulate)
        batch_losses: dict[str, Tensor] = {}
        for part in parts:
            share = len(part) / len(batch)
            # processes exchange gradients once per batch, after the last part
            exchange = part is parts[-1] or not isinstance(self.model, DistributedDataParallel)
            with nullcontext() if exchange else self.model.no_sync():
                autocast = self.precision != "float32"
                with torch.autocast(self.device.type, getattr(torch, self.precision), enabled=autocast):
                    losses = self.model(part)
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                total = sum(losses.values())
                self._check_losses(total, losses, part)
                self.scaler.scale(share * total).backward()
            for name, loss in losses.items():
                batch_losses[name] = batch_losses.get(name, 0.0) + share * loss.detach()
        return batch_losses

    def _clip(self, batch: Sequence[Any]) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or math.inf).item()
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, self.clip_value)
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        elif not self.scaler.is_enabled():  # a GradScaler skips such a step and lowers its scale
            # all processes have the same norm
            self._fail(f"gradients have a norm of {norm:g}", f"one of these images:{_image_names(batch)}")

    def _check_losses(self, total: Tensor, losses: Mapping[str, Tensor], part: Sequence[Any]) -> None:
        failed_here = (~total.detach().isfinite()).float()
        failed_anywhere = failed_here.clone()
        if comm.get_world_size() > 1:
            # all processes have to stop here; one that went on would wait for the gradients of the others
            torch.distributed.all_reduce(failed_anywhere, torch.distributed.ReduceOp.MAX)
        if failed_anywhere:
            values = ", ".join(f"{name}={loss.item():g}" for name, loss in losses.items())
            self._fail("losses are not finite", f"{values} on these images:{_image_names(part)}" if failed_here else "")

    def _fail(self, problem: str, details: str) -> None:
        """Stops the training in all processes; ``details`` are those of this process."""
        all_details = "\n".join(filter(None, comm.all_gather(details)))
        if self.checkpointer is not None and self.checkpointer.has_checkpoint():
            last = f"--resume continues from '{self.checkpointer.get_checkpoint_file()}'."
        else:
            last = "There is no checkpoint yet (train.checkpointer.period)."
        raise FloatingPointError(
            f"The {problem} at iteration {self.iter}: {all_details}\n"
            f"The weights were not changed. {last} Check the images and their annotations. If they are correct, clip "
            "the gradients (train.trainer.clip_norm) or start again with a lower optimizer.lr."
        )

    def _new_average(self) -> ModelEmaV3:
        # timm's warm-up with these numbers is (1 + t) / (10 + t)
        warmup = {"use_warmup": True, "update_after_step": -2, "warmup_gamma": 9.0, "warmup_power": 1.0}
        return ModelEmaV3(_unwrap(self.model), self.ema_decay, **warmup)

    def state_dict(self) -> dict[str, Any]:
        """Adds the gradient scaler, with the key of AMPTrainer, and the averages of trainable weights and buffers."""
        state = super().state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            frozen = {name for name, value in self.ema.module.named_parameters() if not value.requires_grad}
            averages = {name: value for name, value in self.ema.module.state_dict().items() if name not in frozen}
            state["ema"] = {"updates": self._ema_updates, "averages": averages}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint's state, after the model has loaded its weights.

        Raises:
            ValueError: the model lacks parameters of the averaged weights.
        """
        super().load_state_dict(state_dict)
        if "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])  # has no effect on a disabled scaler
        state = state_dict.get("ema")
        if self.ema_decay is None:
            if state is not None:
                logger.warning("The checkpoint's averaged weights are dropped: train.trainer.ema_decay is not set.")
        elif state is None:
            logger.warning("The checkpoint has no averaged weights: the average (ema_decay) starts with this resume.")
        elif state["averages"]:
            self._load_average(state["averages"], state["updates"])

    @torch.no_grad()
    def _load_average(self, averages: Mapping[str, Tensor], updates: int) -> None:
        self.ema, self._ema_updates = self._new_average(), updates
        own = self.ema.module.state_dict()
        unknown = sorted(averages.keys() - own.keys())
        if unknown:
            raise ValueError(
                f"The checkpoint has averaged weights of {len(unknown)} parameters that this model does not have, such "
                f"as {', '.join(unknown[:3])}: resume with the same model."
            )
        for name, value in averages.items():
            own[name].copy_(value)


def evaluated_model(trainer: TrainerBase) -> nn.Module:
    """Returns the model with averaged weights if the trainer has one, else the trained model."""
    ema: ModelEmaV3 | None = getattr(trainer, "ema", None)
    return trainer.model if ema is None else ema.module


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _split(batch: Sequence[Any], number: int) -> list[Sequence[Any]]:
    number = min(number, len(batch))
    bounds = [i * len(batch) // number for i in range(number + 1)]
    return [batch[start:end] for start, end in pairwise(bounds)]


def _image_names(images: Sequence[Any]) -> str:
    lines = []
    for image in images:
        image = image if isinstance(image, Mapping) else {}
        number = f" (image id {image['image_id']})" if "image_id" in image else ""
        lines.append(f"\n  {image.get('file_name', 'an image without file_name')}{number}")
    return "".join(lines)
