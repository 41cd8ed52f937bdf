"""AdamW with gradient clipping, and layer-wise learning-rate decay for ViTs with LiFT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

# Parts of detectron2's and timm's ViTs before the first block.
_EMBEDDINGS = (".pos_embed", ".patch_embed", ".cls_token", ".dist_token", ".reg_token", ".norm_pre")


class ClippedAdamW(torch.optim.AdamW):
    """:class:`torch.optim.AdamW` that scales gradients down to a common L2 norm of at most ``max_norm``.

    For detectron2's ``tools/lazyconfig_train_net.py``, which does not clip gradients.

    Args:
        params, kwargs: see AdamW. ``fused=True`` is not supported.
        max_norm: largest L2 norm of all gradients together.
    """

    def __init__(self, params: Any, *, max_norm: float = 1.0, **kwargs: Any) -> None:
        if kwargs.get("fused"):
            raise ValueError("ClippedAdamW cannot be fused: under AMP it would clip gradients that are still scaled.")
        super().__init__(params, **kwargs)
        self.max_norm = max_norm

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Clips the gradients and updates the weights. A closure is not supported."""
        if closure is not None:
            raise ValueError("ClippedAdamW takes no closure.")
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.max_norm)
        return super().step()


class LayerDecay:
    """Layer-wise learning-rate decay, for ``get_default_optimizer_params(lr_factor_func=...)``.

    Works as detectron2's ``get_vit_lr_decay_rate``, and supports timm's ViTs and LiFT, too. It is a class so that each
    value can be overridden in a LazyConfig.

    Args:
        lr_decay_rate: factor between two layers.
        num_layers: number of blocks of the ViT.
        lift_lr_rate: factor of LiFT's parameters. With None, :func:`get_optimizer_params` uses ``lr_decay_rate`` for a
            LiFT that was loaded from a file, and 1 for an untrained one.
    """

    def __init__(self, lr_decay_rate: float, num_layers: int, lift_lr_rate: float | None = None) -> None:
        self.lr_decay_rate = lr_decay_rate
        self.num_layers = num_layers
        self.lift_lr_rate = lift_lr_rate

    def __call__(self, name: str) -> float:
        """Returns the factor of a parameter, such as ``"backbone.net.blocks.3.attn.qkv.weight"``.

        Raises:
            ValueError: the ViT has more than ``num_layers`` blocks.
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


def get_optimizer_params(model: nn.Module, *args: Any, lr_factor_func: Any = None, **kwargs: Any) -> list[dict]:
    """detectron2's ``get_default_optimizer_params`` with ``LayerDecay(lift_lr_rate=None)`` resolved for the model."""
    if isinstance(lr_factor_func, LayerDecay) and lr_factor_func.lift_lr_rate is None:
        lift = getattr(getattr(model, "backbone", None), "lift", None)
        if getattr(lift, "trained", False):
            lr_factor_func = copy.copy(lr_factor_func)
            lr_factor_func.lift_lr_rate = lr_factor_func.lr_decay_rate
    return get_default_optimizer_params(model, *args, lr_factor_func=lr_factor_func, **kwargs)
