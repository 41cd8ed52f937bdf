"""LiFT, the paper's upsampler."""

from __future__ import annotations

import os
from typing import Any

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn

from lift_det.checkpoint import CheckpointError

from .base import FeatureUpsampler, check_inputs, register_upsampler, resize, scaled_size
from .files import UpsamplerFile

PATCH_SIZES = (8, 14, 16, 32)
# Channels of the image branch; section 3.2 of the paper.
_IMAGE_CHANNELS = 32


@register_upsampler("lift")
class LiFT(FeatureUpsampler):
    """Lightweight Feature Transform (Suri et al., ECCV 2024, section 3.2).

    Strided convolutions reduce the image to the size of the ViT's map, and the result is concatenated to the features.
    A transposed convolution doubles the map, image features of that size are concatenated, and two 3×3 convolutions and
    a 1×1 convolution follow. The image is first resized to 16 pixels per patch (8 for patches of 8 pixels), so that all
    patch sizes have the same network.

    With ``residual=False`` this is the paper's network, and its state-dict names are those of the authors' files. With
    ``residual=True`` the output is added to the bilinearly upsampled features, and the last layer starts at zero.
    """

    in_channels: int
    patch_size: int
    stated_by_files = ("residual",)
    _divisor = 2  # of in_channels

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        residual: bool = True,
        *,
        norm: str = "BN",
        preserve_norm: bool = False,
        checkpoint: str | os.PathLike = "",
    ) -> None:
        """
        Args:
            in_channels: C of the ViT's features; even.
            patch_size: of the ViT, in pixels: 8, 14, 16 or 32.
            residual: whether the output is added to the bilinearly upsampled features.
            norm: name of the normalisation layer for :func:`detectron2.layers.get_norm`; ``"BN"`` in the paper.
            preserve_norm: scale each output vector to the norm of the input vectors, upsampled bilinearly. Without it,
                the norm of a LiFT that was trained with a cosine loss drifts with every doubling.
            checkpoint: file of a trained LiFT with these settings; see :func:`load_lift`.

        Raises:
            ValueError: the patch size or width is not supported.
            CheckpointError: the checkpoint has other settings.
        """
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(f"LiFT supports patch sizes {PATCH_SIZES}, not {patch_size}.")
        if in_channels < self._divisor or in_channels % self._divisor:
            raise ValueError(f"in_channels has to be a multiple of {self._divisor}, got {in_channels}.")
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.residual = residual
        self.norm = norm
        self.preserve_norm = preserve_norm
        # torch stores this in state dicts, whose tensors are the same in both cases; the authors' files have 1
        self._version = 2 if residual else 1
        #: pixels per patch of the resized image
        self.patch_pixels = 8 if patch_size == 8 else 16
        #: replaced in exported models
        self.resize_image = resize
        hidden = self._add_network(norm)
        self.outc = nn.Conv2d(hidden, in_channels, kernel_size=1)
        if residual:
            nn.init.zeros_(self.outc.weight)
            nn.init.zeros_(self.outc.bias)
        if checkpoint:
            UpsamplerFile(checkpoint).load_into(self)

    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """Doubles the map until it is at least as large as ``output_size``, then resizes it to that.

        Several doublings are the paper's recursion (section 3.3). Each one resizes the images to ``patch_size`` pixels
        per cell of its input, as in training. See :meth:`FeatureUpsampler.forward` for arguments and result.

        Raises:
            ValueError: the shapes do not match.
        """
        output_size = output_size or scaled_size(features)
        lifted = features
        while lifted.shape[-2] < output_size[0] or lifted.shape[-1] < output_size[1]:
            lifted = self.step(images, lifted)
        lifted = resize(lifted, output_size)
        return _with_norm_of(features, lifted) if self.preserve_norm else lifted

    def step(self, images: Tensor, features: Tensor) -> Tensor:
        """Doubles a map once, without ``preserve_norm``."""
        images = self._image_for(images, features)
        lifted = self.outc(self._network(images, features))
        return lifted + resize(features, scaled_size(features)) if self.residual else lifted

    def settings(self) -> dict[str, Any]:
        names = ("in_channels", "patch_size", "residual", "norm", "preserve_norm")
        return {name: getattr(self, name) for name in names}

    def _add_network(self, norm: str) -> int:
        """Adds the modules at the top level, as in the authors' files; returns the channels of :meth:`_network`."""
        hidden = self.in_channels // 2
        self.image_convs_1 = nn.Sequential(*_image_conv(3, norm), *_image_conv(_IMAGE_CHANNELS, norm))
        self.scale_adapter = nn.Identity() if self.patch_pixels == 8 else nn.MaxPool2d(2, 2)
        self.image_convs_2 = nn.Sequential(*_image_conv(_IMAGE_CHANNELS, norm))
        self.up1 = _Up(self.in_channels + _IMAGE_CHANNELS, hidden, norm)
        return hidden

    def _network(self, images: Tensor, features: Tensor) -> Tensor:
        """(N, 3, h · patch_pixels, w · patch_pixels), (N, C, h, w) → (N, hidden, 2h, 2w)."""
        image_2x = self.scale_adapter(self.image_convs_1(images))  # (N, 32, 2h, 2w)
        image_1x = self.image_convs_2(image_2x)  # (N, 32, h, w)
        return self.up1(torch.cat([features, image_1x], dim=1), image_2x)  # (N, C/2, 2h, 2w)

    def _image_for(self, images: Tensor, features: Tensor) -> Tensor:
        """Resizes the image to (N, 3, h · patch_pixels, w · patch_pixels)."""
        check_inputs(images, features)
        if features.shape[1] != self.in_channels:
            raise ValueError(f"This LiFT is for {self.in_channels} channels; the features have {features.shape[1]}.")
        h, w = features.shape[-2:]
        # to the ViT's resolution first, as in training
        for pixels in (self.patch_size, self.patch_pixels):
            images = self.resize_image(images, (h * pixels, w * pixels))
        # the layout of the ViT's map, and the fastest one for convolutions
        return images.contiguous(memory_format=torch.channels_last)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        version = local_metadata.get("version")
        if version not in (None, self._version):
            raise CheckpointError(
                f"The LiFT in this checkpoint has residual={version == 2}, and the model's residual={self.residual}: "
                "set lift.residual as in the checkpoint."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _with_norm_of(features: Tensor, lifted: Tensor) -> Tensor:
    """Scales the vectors of ``lifted``, (N, C, h', w'), to the norms of ``features``, (N, C, h, w)."""
    norms = resize(features.norm(dim=1, keepdim=True), lifted.shape[-2:])
    return lifted * (norms / lifted.norm(dim=1, keepdim=True).clamp(min=1e-6))


def _image_conv(in_channels: int, norm: str) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, _IMAGE_CHANNELS, kernel_size=3, padding=1, stride=2),
        get_norm(norm, _IMAGE_CHANNELS) or nn.Identity(),
        nn.ReLU(inplace=True),
    ]


class _Up(nn.Module):
    """Doubles the map and concatenates the image features."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv_1 = _DoubleConv(in_channels // 2 + _IMAGE_CHANNELS, out_channels, norm)

    def forward(self, x: Tensor, image_2x: Tensor) -> Tensor:
        return self.conv_1(torch.cat([self.up(x), image_2x], dim=1))


class _DoubleConv(nn.Module):
    """Two 3×3 convolutions, with the names of the authors' files."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),
                get_norm(norm, out_channels) or nn.Identity(),
                nn.ReLU(inplace=True),
            ]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)
