"""Layer-wise learning-rate decay that knows LiFT and timm's ViTs."""

from __future__ import annotations

import copy
from typing import Any

from detectron2.solver.build import get_default_optimizer_params
from torch import nn

# Names that come before the first block in detectron2's and timm's ViTs.
_EMBEDDINGS = (".pos_embed", ".patch_embed", ".cls_token", ".dist_token", ".reg_token", ".norm_pre")


def get_optimizer_params(model: nn.Module, *args: Any, lr_factor_func: Any = None, **kwargs: Any) -> list[dict]:
    """detectron2's ``get_default_optimizer_params``, in which :class:`LayerDecay` knows whether LiFT is trained."""
    if isinstance(lr_factor_func, LayerDecay):
        lr_factor_func = lr_factor_func.for_model(model)
    return get_default_optimizer_params(model, *args, lr_factor_func=lr_factor_func, **kwargs)


class LayerDecay:
    """The factor on the learning rate of a parameter, for ``get_default_optimizer_params(lr_factor_func=…)``.

    As detectron2's ``get_vit_lr_decay_rate``: ``lr_decay_rate`` to the power of the number of layers above. That one
    knows only detectron2's ViT, and a pretrained LiFT would train at the heads' rate; this one also knows the prefix
    tokens of timm's ViTs, and LiFT. A class, so that a LazyConfig's values can be overridden one by one.
    """

    def __init__(self, lr_decay_rate: float, num_layers: int, lift_lr_rate: float | None = None) -> None:
        """
        Args:
            lr_decay_rate: from layer to layer.
            num_layers: blocks of the ViT.
            lift_lr_rate: LiFT's factor. None follows from the model (:meth:`for_model`): 1, the heads' rate, for a LiFT
                that starts untrained; ``lr_decay_rate``, the last block's, for one that was loaded from a checkpoint
                and so belongs to the pretrained part.
        """
        self.lr_decay_rate = lr_decay_rate
        self.num_layers = num_layers
        self.lift_lr_rate = lift_lr_rate

    def for_model(self, model: nn.Module) -> LayerDecay:
        """The same, with LiFT's factor decided for a model that is built."""
        if self.lift_lr_rate is not None:
            return self
        lift = getattr(getattr(model, "backbone", None), "lift", None)
        decided = copy.copy(self)
        decided.lift_lr_rate = self.lr_decay_rate if getattr(lift, "trained", False) else 1.0
        return decided

    def __call__(self, name: str) -> float:
        """
        Args:
            name: the parameter's, such as ``"backbone.net.blocks.3.attn.qkv.weight"``.

        Raises:
            ValueError: a block that ``num_layers`` does not count: its rate would grow instead of decaying.
        """
        if name.startswith("backbone.lift."):
            return 1.0 if self.lift_lr_rate is None else self.lift_lr_rate
        layer = self.num_layers + 1
        if name.startswith("backbone.net."):
            if ".blocks." in name and ".residual." not in name:
                layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
                if layer > self.num_layers:
                    raise ValueError(f"'{name}' is beyond num_layers={self.num_layers}: set it to the ViT's depth.")
            elif any(part in name for part in _EMBEDDINGS):
                layer = 0
        return self.lr_decay_rate ** (self.num_layers + 1 - layer)
