"""Normalisation layers: LayerNorm over channels in one pass, BatchNorm over the batches of all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from detectron2.utils import comm
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
    """Replaces detectron2's LayerNorms in a model by :class:`ChannelLayerNorm`, in place."""
    for module in model.modules():
        if type(module) is LayerNorm:
            module.__class__ = ChannelLayerNorm


def synchronise_batchnorm(module: nn.Module) -> None:
    """Makes every ``BatchNorm2d`` below ``module`` take its statistics over the batches of all processes, in place.

    Names, parameters, buffers and the training or evaluation mode stay as they are; in evaluation nothing is
    communicated. With the NCCL backend (CUDA) it becomes torch's ``SyncBatchNorm``; with any other, which that does not
    support, a form of detectron2's ``NaiveSyncBatchNorm``. Processes must have batches of one size. Other norms, frozen
    and already synchronised ones too, are left alone, and so is everything where there is one process.

    Args:
        module: what holds the layers; to be called before DistributedDataParallel and before an optimizer is made.
    """
    if comm.get_world_size() == 1:
        return
    kind = nn.SyncBatchNorm if torch.distributed.get_backend() == "nccl" else _SyncBatchNorm2d
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _converted(child, kind))


def _converted(norm: nn.BatchNorm2d, kind: type[nn.SyncBatchNorm | NaiveSyncBatchNorm]) -> nn.Module:
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synchronised = kind(*settings).train(norm.training)
    # the tensors themselves, not copies: whatever their device, type and requires_grad, and whoever else holds them
    synchronised._parameters.update(norm._parameters)
    synchronised._buffers.update(norm._buffers)
    return synchronised


class _SyncBatchNorm2d(NaiveSyncBatchNorm):
    """Counts batches and estimates the running variance without bias, as torch's do and detectron2's does not."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        before = self.running_var.clone()
        # E[x²] − E[x]² cancels in half precision, and upstream's knows of float16 alone
        output = super().forward(input.float()).to(input.dtype)
        count = input.numel() // input.shape[1] * comm.get_world_size()
        # what this batch added, which was momentum · biased variance
        added = self.running_var - (1 - self.momentum) * before
        self.running_var += added / (count - 1)
        self.num_batches_tracked += 1
        return output
