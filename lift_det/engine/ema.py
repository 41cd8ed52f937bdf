"""Averaged weights: the exponential moving average of what a training changes in a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """An exponential moving average of a model's trained parameters and of its statistics, in float32.

    Parameters that take no gradient are not kept a second time. BatchNorm's running statistics are averaged as the
    weights are, because those of the last weights would not fit the averaged ones; counters stay the model's own. The
    decay warms up as ``min(decay, (1 + t) / (10 + t))`` after t updates, so that the first, untrained weights are
    forgotten soon; the first update takes the weights as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: on its device, its frozen parts frozen; of a DistributedDataParallel the model in it is averaged.
            decay: of the average at each update, such as 0.9998 (an average over some 5,000 steps).

        Raises:
            ValueError: a decay that is not between 0 and 1.
        """
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay: expected a number between 0 and 1, such as 0.9998, got {decay}.")
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self.decay = decay
        #: how many times :meth:`update` was called
        self.updates = 0
        saved = model.state_dict().keys()
        self._own = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._own |= {
            name: value for name, value in model.named_buffers() if name in saved and value.is_floating_point()
        }
        self._averages: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's weights of this step into the average."""
        if not self._averages:
            # now and not at construction, because a checkpoint may have been loaded in between
            self._averages = {name: value.to(torch.float32, copy=True) for name, value in self._own.items()}
        else:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            own = [value.detach().float() for value in self._own.values()]
            get_ema_multi_avg_fn(decay)(list(self._averages.values()), own, self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the averaged weights (before the first update its own); afterwards its own again."""
        own = {name: value.detach().clone() for name, value in self._own.items()}
        try:
            self._set(self._averages)
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._own[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: ``updates`` and the ``averages`` by name."""
        return {"updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: its averages are of other parameters than this model trains.
        """
        averages = state["averages"]
        other = sorted(averages.keys() ^ self._own.keys()) if averages else []
        if other:
            raise ValueError(
                f"The averaged weights in the checkpoint are of other parameters than this model trains: {len(other)} "
                f"are only in one of them, {', '.join(other[:3])} among them. Resume with what was frozen before, or "
                "start a new training from the weights (train.init_checkpoint)."
            )
        self.updates = state["updates"]
        self._averages = {
            name: averages[name].to(self._own[name].device, torch.float32, copy=True) for name in self._own if averages
        }
