"""Normalisation layers: a faster LayerNorm over channels, and synchronised BatchNorm on any backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn


class ChannelLayerNorm(LayerNorm):
    """detectron2's LayerNorm over the channels of a map, computed by PyTorch's kernel.

    detectron2 computes it in six passes over the map, and keeps three maps for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W) in channels-last layout."""
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def use_channel_layer_norm(model: nn.Module) -> None:
    """Replaces detectron2's LayerNorms in ``model`` in place."""
    for module in model.modules():
        if type(module) is LayerNorm:
            module.__class__ = ChannelLayerNorm


def synchronise_batchnorm(module: nn.Module) -> None:
    """Converts every ``BatchNorm2d`` below ``module`` in place, so that statistics are those of all processes.

    With the NCCL backend it becomes PyTorch's ``SyncBatchNorm``, otherwise a version of detectron2's
    ``NaiveSyncBatchNorm``. Names, parameters, buffers and modes are kept. All processes need batches of the same size.
    """
    if comm.get_world_size() == 1:
        return
    kind = nn.SyncBatchNorm if torch.distributed.get_backend() == "nccl" else _SyncBatchNorm2d
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                settings = (child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                synchronised = kind(*settings).train(child.training)
                # the same tensors, not copies
                synchronised._parameters.update(child._parameters)
                synchronised._buffers.update(child._buffers)
                setattr(parent, name, synchronised)


class _SyncBatchNorm2d(NaiveSyncBatchNorm):
    """NaiveSyncBatchNorm that counts batches and has an unbiased running variance, as PyTorch's BatchNorm."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        before = self.running_var.clone()
        # E[x²] − E[x]² cancels in half precision; detectron2 converts float16 only
        output = super().forward(input.float()).to(input.dtype)
        count = input.numel() // input.shape[1] * comm.get_world_size()
        # the batch's part, momentum · biased variance, is multiplied by count / (count - 1)
        added = self.running_var - (1 - self.momentum) * before
        self.running_var += added / (count - 1)
        self.num_batches_tracked += 1
        return output
