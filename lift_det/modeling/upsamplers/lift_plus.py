"""LiFTPlus: LiFT with another network, standardized features and attention pooling."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from detectron2.utils import comm
from torch import Tensor, nn

from .base import register_upsampler, resize, scaled_size
from .files import UpsamplerFile
from .lift import LiFT

NETWORKS = ("trunk", "paper")
_IMAGE_CHANNELS = 48
# Added to the weights of bilinear interpolation, so that their logarithm is finite.
_SMALLEST_WEIGHT = 0.004


@register_upsampler("lift_plus")
class LiFTPlus(LiFT):
    """A residual LiFT with a faster and more accurate network (docs/lift_training.md).

    A :class:`TrunkNetwork` gets the image and the standardized features. Its output is added to the features, upsampled
    by an :class:`AttentionPool`, and the result is scaled to the norms of the features.
    """

    stated_by_files = ("preserve_norm",)

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        *,
        network: str = "trunk",
        attention_kernel: int = 3,
        standardize: bool = True,
        preserve_norm: bool = True,
        norm: str = "BN",
        checkpoint: str | os.PathLike = "",
    ) -> None:
        """
        Args:
            in_channels: C of the ViT's features; a multiple of 4 (of 2 with ``network="paper"``).
            patch_size, preserve_norm, norm, checkpoint: see :class:`LiFT`.
            network: ``"trunk"``, or ``"paper"`` for the network of :class:`LiFT`.
            attention_kernel: size of the attention pooling's neighbourhood in cells, odd and at least 3. 0 selects
                bilinear upsampling instead.
            standardize: give the network features with mean 0 and standard deviation 1 in each channel, and multiply
                its output by the standard deviations; see :class:`FeatureNorm`.

        Raises:
            ValueError: as for :class:`LiFT`; an unknown network, or an invalid ``attention_kernel``.
            CheckpointError: the checkpoint has other settings.
        """
        if network not in NETWORKS:
            raise ValueError(f"network='{network}': expected one of {NETWORKS}.")
        if attention_kernel and (attention_kernel < 3 or attention_kernel % 2 == 0):
            raise ValueError(f"attention_kernel={attention_kernel}: expected an odd number of at least 3, or 0.")
        self.network = network
        self._divisor = 4 if network == "trunk" else 2
        super().__init__(in_channels, patch_size, norm=norm, preserve_norm=preserve_norm)
        self.attention_kernel = attention_kernel
        self.normalize = FeatureNorm(in_channels) if standardize else None
        self.pool = AttentionPool(self.outc.in_channels, attention_kernel) if attention_kernel else None
        if checkpoint:
            UpsamplerFile(checkpoint).load_into(self)

    def step(self, images: Tensor, features: Tensor) -> Tensor:
        images = self._image_for(images, features)
        normalized = features if self.normalize is None else self.normalize(features)
        hidden = self._network(images, normalized)
        added = self.outc(hidden)
        if self.normalize is not None:
            added = added * self.normalize.deviation()
        return added + (resize(features, scaled_size(features)) if self.pool is None else self.pool(features, hidden))

    def settings(self) -> dict[str, Any]:
        names = ("in_channels", "patch_size", "norm", "preserve_norm", "network", "attention_kernel")
        return {name: getattr(self, name) for name in names} | {"standardize": self.normalize is not None}

    def _add_network(self, norm: str) -> int:
        if self.network == "paper":
            return super()._add_network(norm)
        self.trunk = TrunkNetwork(self.in_channels, self.patch_pixels, norm)
        return self.trunk.out_channels

    def _network(self, images: Tensor, features: Tensor) -> Tensor:
        return super()._network(images, features) if self.network == "paper" else self.trunk(images, features)


class TrunkNetwork(nn.Module):
    """A network that works mostly at the resolution of the ViT's map, where convolutions are cheap.

    Convolutions reduce the image to twice the map's resolution, and then to the map's. Image and features are
    concatenated and go through residual blocks of C / 2 channels. A 1×1 convolution and a pixel shuffle double the
    resolution, the image features of that size are added, and a residual block of C / 4 channels follows.

    Args:
        in_channels: C of the features, a multiple of 4.
        patch_pixels: pixels per patch of the image, 8 or 16.
        norm: name of the normalisation layer for :func:`detectron2.layers.get_norm`.
    """

    def __init__(self, in_channels: int, patch_pixels: int, norm: str) -> None:
        super().__init__()
        width, self.out_channels = in_channels // 2, in_channels // 4
        image = _IMAGE_CHANNELS
        self.image_2x = nn.Sequential(
            nn.Conv2d(3, image, kernel_size=4, stride=4),
            get_norm(norm, image) or nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Conv2d(image, image, kernel_size=3, stride=patch_pixels // 8, padding=1),
            get_norm(norm, image) or nn.Identity(),
            nn.ReLU(inplace=True),
        )
        self.image_1x = nn.Sequential(
            nn.Conv2d(image, image, kernel_size=3, stride=2, padding=1),
            get_norm(norm, image) or nn.Identity(),
            nn.ReLU(inplace=True),
        )
        self.reduce = nn.Conv2d(in_channels + image, width, kernel_size=1)
        self.blocks = nn.Sequential(*(_ResidualBlock(width, norm) for _ in range(2)))
        self.expand = nn.Conv2d(width, 4 * self.out_channels, kernel_size=1)
        self.image_to_high = nn.Conv2d(image, self.out_channels, kernel_size=1)
        self.high_blocks = nn.Sequential(_ResidualBlock(self.out_channels, norm))
        self.last = nn.Sequential(get_norm(norm, self.out_channels) or nn.Identity(), nn.ReLU(inplace=True))

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """(N, 3, h · patch_pixels, w · patch_pixels), (N, C, h, w) → (N, C / 4, 2h, 2w)."""
        image_2x = self.image_2x(images)  # (N, 48, 2h, 2w)
        x = self.reduce(torch.cat([features, self.image_1x(image_2x)], dim=1))  # (N, C/2, h, w)
        x = F.pixel_shuffle(self.expand(self.blocks(x)), 2)  # (N, C/4, 2h, 2w)
        return self.last(self.high_blocks(x + self.image_to_high(image_2x)))


class FeatureNorm(nn.Module):
    """Standardizes each channel of the features, by the mean statistics of the first training batches.

    Unlike BatchNorm, it computes the same in training and evaluation, and keeps the differences between images.
    Statistics are averaged over all processes.

    Args:
        channels: C of the features.
        calls: number of training batches.
    """

    def __init__(self, channels: int, calls: int = 200) -> None:
        super().__init__()
        self.calls = calls
        self._settled = False  # caches `seen >= calls`, which synchronises with the device
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))  # mean of the squares
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        if self.training and not self._settled:
            self._settled = bool(self.seen >= self.calls)
            if not self._settled:
                self._update(features.detach().float())
        return (features - self.mean.view(-1, 1, 1)) / self.deviation()

    def deviation(self) -> Tensor:
        """Standard deviation of each channel, (C, 1, 1)."""
        return (self.square - self.mean.square()).clamp(min=1e-6).sqrt().view(-1, 1, 1)

    @torch.no_grad()
    def _update(self, features: Tensor) -> None:
        batch = torch.stack([features.mean(dim=(0, 2, 3)), features.square().mean(dim=(0, 2, 3))])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(batch)
            batch /= comm.get_world_size()
        self.seen += 1
        self.mean += (batch[0] - self.mean) / self.seen
        self.square += (batch[1] - self.square) / self.seen


class AttentionPool(nn.Module):
    """Doubles a map: each new cell is a weighted mean of the ``size`` × ``size`` old cells around it.

    The weights are the same for all channels, and are a softmax of logits. The logits are the sum of a 1×1 convolution
    of the network's hidden map and learned constants, which are initialised with the logarithm of the weights of
    bilinear interpolation. UPLiFT, by the authors of LiFT, ends in a similar pooling, which keeps recursion from
    drifting.

    Args:
        hidden_channels: channels of the hidden map.
        size: size of the neighbourhood, odd.
    """

    def __init__(self, hidden_channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.logits = nn.Conv2d(hidden_channels, size * size, kernel_size=1)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.prior = nn.Parameter((_bilinear_weights(size) + _SMALLEST_WEIGHT).log())  # (4, size²)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """(N, C, h, w), (N, hidden, 2h, 2w) → (N, C, 2h, 2w)."""
        batch, channels, height, width = features.shape
        neighbours = self.size * self.size
        logits = F.pixel_unshuffle(self.logits(hidden), 2)  # (N, size² · 4, h, w): a cell's four children
        logits = logits.unflatten(1, (neighbours, 4)).permute(0, 3, 4, 2, 1) + self.prior  # (N, h, w, 4, size²)
        weights = logits.float().softmax(dim=-1).reshape(-1, 4, neighbours).to(features.dtype)
        # replicates the border, as bilinear interpolation does
        padded = F.pad(features, (self.size // 2,) * 4, mode="replicate")
        windows = padded.permute(0, 2, 3, 1).contiguous().unfold(1, self.size, 1).unfold(2, self.size, 1)
        windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, neighbours, channels)  # (N·h·w, size², C)
        pooled = torch.bmm(weights, windows).view(batch, height, width, 4, channels)
        # (N, h, w, 4, C) → (N, C · 4, h, w) with the four children innermost, for pixel_shuffle
        pooled = pooled.permute(0, 4, 3, 1, 2).reshape(batch, channels * 4, height, width)
        return F.pixel_shuffle(pooled, 2)


def _bilinear_weights(size: int) -> Tensor:
    """Returns the weights of bilinear interpolation for the four children of a cell, row by row: (4, size²)."""
    middle = size // 2
    weights = torch.zeros(2, size)  # of the first and the second child along one axis
    weights[:, middle] = 0.75
    weights[0, middle - 1] = weights[1, middle + 1] = 0.25
    return torch.einsum("ay,bx->abyx", weights, weights).reshape(4, size * size)


class _ResidualBlock(nn.Module):
    """Adds two 3×3 convolutions, each after a norm and a ReLU, to the input. Starts as the identity."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                get_norm(norm, channels) or nn.Identity(),
                nn.ReLU(inplace=False),  # the input is added afterwards
                nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            ]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
