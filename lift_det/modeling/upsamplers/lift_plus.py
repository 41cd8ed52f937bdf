"""LiFT improved: another network, normalised features, an attention pooling in place of bilinear interpolation."""

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
# Every neighbour's share before training, so that the logarithm of bilinear's weights is finite.
_PRIOR_SHARE = 0.004


@register_upsampler("lift_plus")
class LiFTPlus(LiFT):
    """A residual LiFT that learns more in less time; docs/lift_training.md has what each of its parts brings.

    The network is :class:`TrunkNetwork`. Its output is added to an attention pooling of the features, not to their
    bilinear upsampling. It sees features of one scale, and the lengths of the feature vectors are kept.
    """

    stated_by_files = ("keep_length",)

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        *,
        network: str = "trunk",
        pool: int = 3,
        normalize: bool = True,
        keep_length: bool = True,
        norm: str = "BN",
        checkpoint: str | os.PathLike = "",
    ) -> None:
        """
        Args:
            in_channels: C, the ViT's width; a multiple of 4 (of 2 with the paper's network).
            patch_size, keep_length, norm, checkpoint: as in :class:`LiFT`.
            network: ``"trunk"``, or ``"paper"`` for LiFT's own.
            pool: side of the neighbourhood, in the ViT's cells, from which :class:`AttentionPool` takes what the
                network's output is added to; odd, from 3. 0 is bilinear upsampling.
            normalize: give the network features of mean 0 and deviation 1 in each channel, and scale what it adds by
                each channel's deviation: some channels of a ViT are many times as large as others. See
                :class:`FeatureNorm`.

        Raises:
            ValueError: as :class:`LiFT`; an unknown network, or a pool that is not odd.
            CheckpointError: the checkpoint has other settings.
        """
        if network not in NETWORKS:
            raise ValueError(f"LiFTPlus's network is one of {NETWORKS}, not '{network}'.")
        if pool and (pool < 3 or pool % 2 == 0):
            raise ValueError(f"pool={pool}: expected an odd number from 3, or 0.")
        self.network = network
        self._divisor = 4 if network == "trunk" else 2
        super().__init__(in_channels, patch_size, norm=norm, keep_length=keep_length)
        self.pool_size = pool
        self.normalize = FeatureNorm(in_channels) if normalize else None
        self.pool = AttentionPool(self.outc.in_channels, pool) if pool else None
        if checkpoint:
            UpsamplerFile(checkpoint).load_into(self)

    def step(self, images: Tensor, features: Tensor) -> Tensor:
        """See :meth:`LiFT.step`."""
        images = self._image_for(images, features)
        normalized = features if self.normalize is None else self.normalize(features)
        hidden = self._network(images, normalized)
        added = self.outc(hidden)
        if self.normalize is not None:
            added = added * self.normalize.deviation()
        return added + (resize(features, scaled_size(features)) if self.pool is None else self.pool(features, hidden))

    def settings(self) -> dict[str, Any]:
        """See :meth:`FeatureUpsampler.settings`."""
        settings = super().settings()
        del settings["residual"]  # it always is
        return {**settings, "network": self.network, "pool": self.pool_size, "normalize": self.normalize is not None}

    def _add_network(self, norm: str) -> int:
        if self.network == "paper":
            return super()._add_network(norm)
        self.trunk = TrunkNetwork(self.in_channels, self.patch_pixels, norm)
        return self.trunk.out_channels

    def _network(self, images: Tensor, features: Tensor) -> Tensor:
        return super()._network(images, features) if self.network == "paper" else self.trunk(images, features)


class TrunkNetwork(nn.Module):
    """Does most of its work at the ViT's own resolution, where a position costs a quarter of what it costs afterwards.

    The image, cut into patches of 4 pixels by the first convolution, comes down to twice and once the ViT's
    resolution. Beside the features it goes through residual blocks of half their width; a 1×1 convolution and a pixel
    shuffle double the resolution, the image's features of that size are added, and one residual block of a quarter of
    the width follows.
    """

    def __init__(self, in_channels: int, patch_pixels: int, norm: str, blocks: int = 2, high_blocks: int = 1) -> None:
        """
        Args:
            in_channels: C, a multiple of 4.
            patch_pixels: of the images it is given, 8 or 16.
            norm: as :func:`detectron2.layers.get_norm` knows it.
            blocks: residual blocks at the ViT's resolution.
            high_blocks: and at twice that.
        """
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
        self.blocks = nn.Sequential(*(_ResidualBlock(width, norm) for _ in range(blocks)))
        self.expand = nn.Conv2d(width, 4 * self.out_channels, kernel_size=1)
        self.image_to_high = nn.Conv2d(image, self.out_channels, kernel_size=1)
        self.high_blocks = nn.Sequential(*(_ResidualBlock(self.out_channels, norm) for _ in range(high_blocks)))
        self.last = nn.Sequential(get_norm(norm, self.out_channels) or nn.Identity(), nn.ReLU(inplace=True))

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """(N, 3, h · patch_pixels, w · patch_pixels), (N, C, h, w) → (N, C / 4, 2h, 2w)."""
        image_2x = self.image_2x(images)  # (N, 48, 2h, 2w)
        x = self.reduce(torch.cat([features, self.image_1x(image_2x)], dim=1))  # (N, C/2, h, w)
        x = F.pixel_shuffle(self.expand(self.blocks(x)), 2)  # (N, C/4, 2h, 2w)
        return self.last(self.high_blocks(x + self.image_to_high(image_2x)))


class FeatureNorm(nn.Module):
    """Gives features mean 0 and deviation 1 in each channel, by statistics of the first maps that are trained on.

    Unlike BatchNorm it does the same in training and in evaluation, however small the batch, and keeps the differences
    between images. The statistics are means over the first ``calls`` calls in training, of all processes, then stay.
    """

    def __init__(self, channels: int, calls: int = 200) -> None:
        """
        Args:
            channels: C of the features.
            calls: how many batches of maps are looked at.
        """
        super().__init__()
        self.calls = calls
        self._settled = False  # what `seen` says, without asking the device
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))  # of the features, averaged
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        if self.training and not self._settled:
            self._settled = bool(self.seen >= self.calls)
            if not self._settled:
                self._look_at(features.detach().float())
        return (features - self.mean.view(-1, 1, 1)) / self.deviation()

    def deviation(self) -> Tensor:
        """(C, 1, 1), of each channel."""
        return (self.square - self.mean.square()).clamp(min=1e-6).sqrt().view(-1, 1, 1)

    @torch.no_grad()
    def _look_at(self, features: Tensor) -> None:
        batch = torch.stack([features.mean(dim=(0, 2, 3)), features.square().mean(dim=(0, 2, 3))])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(batch)
            batch /= comm.get_world_size()
        self.seen += 1
        self.mean += (batch[0] - self.mean) / self.seen
        self.square += (batch[1] - self.square) / self.seen


class AttentionPool(nn.Module):
    """Doubles a map by weighted means: each new cell takes ``size``² old ones around it, by weights of its own.

    The weights are a softmax over the neighbours of what a 1×1 convolution reads from the hidden map, added to a
    learned constant that starts as the logarithm of bilinear interpolation's weights. All channels share them, so that
    a mean stays among the features there were; the cost is linear in the number of cells. UPLiFT, the successor of
    LiFT by its authors, ends in such a pooling to keep recursion from drifting.
    """

    def __init__(self, hidden_channels: int, size: int) -> None:
        """
        Args:
            hidden_channels: of the map that the weights are read from.
            size: side of the neighbourhood in old cells, odd.
        """
        super().__init__()
        self.size = size
        self.logits = nn.Conv2d(hidden_channels, size * size, kernel_size=1)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.prior = nn.Parameter((_bilinear_weights(size) + _PRIOR_SHARE).log())  # (4, size²)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """(N, C, h, w), (N, hidden, 2h, 2w) → (N, C, 2h, 2w)."""
        batch, channels, height, width = features.shape
        neighbours = self.size * self.size
        logits = F.pixel_unshuffle(self.logits(hidden), 2)  # (N, size² · 4, h, w): a cell's four children
        logits = logits.unflatten(1, (neighbours, 4)).permute(0, 3, 4, 2, 1) + self.prior  # (N, h, w, 4, size²)
        weights = logits.float().softmax(dim=-1).reshape(-1, 4, neighbours).to(features.dtype)
        # at the border the outermost cells repeat, as in bilinear interpolation
        padded = F.pad(features, (self.size // 2,) * 4, mode="replicate")
        windows = padded.permute(0, 2, 3, 1).contiguous().unfold(1, self.size, 1).unfold(2, self.size, 1)
        windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, neighbours, channels)  # (N·h·w, size², C)
        pooled = torch.bmm(weights, windows).view(batch, height, width, 4, channels)
        # (N, h, w, 4, C) → (N, C · 4, h, w), children innermost, as pixel_shuffle wants them
        pooled = pooled.permute(0, 4, 3, 1, 2).reshape(batch, channels * 4, height, width)
        return F.pixel_shuffle(pooled, 2)


def _bilinear_weights(size: int) -> Tensor:
    """(4, size²): what each child of a cell takes of the neighbours in bilinear interpolation, rows first."""
    middle = size // 2
    shares = torch.zeros(2, size)  # of the first and of the second child along one side
    shares[:, middle] = 0.75
    shares[0, middle - 1] = shares[1, middle + 1] = 0.25
    return torch.einsum("ay,bx->abyx", shares, shares).reshape(4, size * size)


class _ResidualBlock(nn.Module):
    """x + two 3×3 convolutions, each behind a norm and ReLU; starts as x."""

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
