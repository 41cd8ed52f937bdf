"""The LayerNorm of ViTDet's pyramid and heads in one pass."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.layers.batch_norm import LayerNorm
from torch import Tensor, nn


class ChannelLayerNorm(LayerNorm):
    """detectron2's LayerNorm over the channels of a map, with its names, through torch's own kernel.

    Upstream's is written out in means and powers: six passes over the map, of which it keeps three for the backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W), laid out with a pixel's channels side by side, as convolutions like it."""
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def use_channel_layer_norm(model: nn.Module) -> None:
    """Gives every LayerNorm of detectron2's in a model the way of :class:`ChannelLayerNorm`, in place."""
    for module in model.modules():
        if type(module) is LayerNorm:
            module.__class__ = ChannelLayerNorm
