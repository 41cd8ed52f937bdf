"""LiFT, the network of the paper."""

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
# Channels of the image branch (3 convolutions of stride 2 between the image and the map); section 3.2 of the paper.
_IMAGE_CHANNELS = 32


@register_upsampler("lift")
class LiFT(FeatureUpsampler):
    """The Lightweight Feature Transform (Suri et al., ECCV 2024, section 3.2).

    The image goes through convolutions of stride 2 down to the ViT's map. There it is concatenated to the features,
    a transposed convolution doubles the result, the image's features of that size are concatenated again, and two
    3×3 convolutions and a 1×1 convolution give the map of twice the resolution.

    With ``residual=False`` this is the paper's network under the names of its authors' release, and their files load.
    With ``residual=True`` the network's output is added to the bilinear upsampling of the input and its last layer
    starts at zero, so that it begins as bilinear.

    The image branch is made for 16 pixels a patch (8 for patch size 8); for other patch sizes the image is resized so
    that a patch is 16 pixels, which keeps the network and its files the same for every ViT.
    """

    in_channels: int
    patch_size: int
    stated_by_files = ("residual",)
    #: channels have to be a multiple of this
    _divisor = 2

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        residual: bool = True,
        *,
        norm: str = "BN",
        keep_length: bool = False,
        checkpoint: str | os.PathLike = "",
    ) -> None:
        """
        Args:
            in_channels: C, the ViT's width; even.
            patch_size: of the ViT, in pixels of the image that it sees: 8, 14, 16 or 32.
            residual: add the bilinear upsampling (see above); ``False`` is the paper's network.
            norm: ``"BN"`` as in the paper, or what else :func:`detectron2.layers.get_norm` knows, such as ``"SyncBN"``
                where a GPU holds one image, or ``"FrozenBN"``.
            keep_length: give each feature vector the length that bilinear upsampling makes of the old ones' lengths.
                A cosine loss leaves lengths free; without this they drift, the more with each step. Directions are
                the same with and without it, also under recursion.
            checkpoint: a trained LiFT (``.safetensors``, or the authors' ``.pth``) with these settings.

        Raises:
            ValueError: another patch size, or a width that cannot be divided.
            CheckpointError: the checkpoint has other settings.
        """
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(f"LiFT knows patch sizes {PATCH_SIZES}, not {patch_size}.")
        if in_channels < self._divisor or in_channels % self._divisor:
            raise ValueError(f"LiFT divides the channels: expected a multiple of {self._divisor}, got {in_channels}.")
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.residual = residual
        self.norm = norm
        self.keep_length = keep_length
        # goes into state dicts beside the tensors, which look alike in both kinds; the authors' files have 1
        self._version = 2 if residual else 1
        #: pixels of a patch in the image branch, which reduces by 8 and, unless patches are that small, pools by 2
        self.patch_pixels = 8 if patch_size == 8 else 16
        #: how the image is resized; export puts another function here
        self.resize_image = resize
        hidden = self._add_network(norm)
        self.outc = nn.Conv2d(hidden, in_channels, kernel_size=1)
        if residual:
            nn.init.zeros_(self.outc.weight)
            nn.init.zeros_(self.outc.bias)
        if checkpoint:
            UpsamplerFile(checkpoint).load_into(self)

    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """Doubles a feature map as often as it takes to reach ``output_size``, and resizes what is left.

        This is the paper's recursion (section 3.3): where the image has fewer pixels than a step looks at, it is
        enlarged bilinearly.

        Args:
            images: (N, 3, H, W), normalised, of any resolution with the map's aspect. Each step looks at them resized
                to ``patch_size`` pixels a cell, the resolution at which LiFT is trained.
            features: (N, C, h, w).
            output_size: (height, width) of the result; None is (2h, 2w).

        Returns:
            (N, C, *output_size)

        Raises:
            ValueError: shapes that do not belong together.
        """
        output_size = output_size or scaled_size(features)
        lifted = features
        while lifted.shape[-2] < output_size[0] or lifted.shape[-1] < output_size[1]:
            lifted = self.step(images, lifted)
        lifted = resize(lifted, output_size)
        return _with_lengths_of(features, lifted) if self.keep_length else lifted

    def step(self, images: Tensor, features: Tensor) -> Tensor:
        """One doubling, with lengths as the network gives them; see :meth:`FeatureUpsampler.step`."""
        images = self._image_for(images, features)
        lifted = self.outc(self._network(images, features))
        return lifted + resize(features, scaled_size(features)) if self.residual else lifted

    def settings(self) -> dict[str, Any]:
        """See :meth:`FeatureUpsampler.settings`."""
        names = ("in_channels", "patch_size", "residual", "norm", "keep_length")
        return {name: getattr(self, name) for name in names}

    # The paper's network is spelt out here and not a module, because the authors' files name its parts at the top.

    def _add_network(self, norm: str) -> int:
        """Adds the network's modules; returns the channels of what :meth:`_network` gives."""
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
        """The image as the network looks at it for a map: (N, 3, h · patch_pixels, w · patch_pixels)."""
        check_inputs(images, features)
        if features.shape[1] != self.in_channels:
            raise ValueError(f"This LiFT is for {self.in_channels} channels; the features have {features.shape[1]}.")
        h, w = features.shape[-2:]
        # first to what the ViT would see, which is what LiFT was trained on
        for pixels in (self.patch_size, self.patch_pixels):
            images = self.resize_image(images, (h * pixels, w * pixels))
        # as a ViT's map lies in memory, and as convolutions are quickest with it
        return images.contiguous(memory_format=torch.channels_last)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        version = local_metadata.get("version")
        if version is not None and version != self._version:
            kinds = {1: "the paper's (residual=False)", 2: "a residual one (residual=True)"}
            raise CheckpointError(
                f"The LiFT in this checkpoint is {kinds.get(version, f'of version {version}')}, and the model's is "
                f"{kinds[self._version]}: make the config say what the checkpoint holds."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _with_lengths_of(features: Tensor, lifted: Tensor) -> Tensor:
    """(N, C, h, w), (N, C, h', w') → the latter's directions, with the former's lengths interpolated."""
    lengths = resize(features.norm(dim=1, keepdim=True), lifted.shape[-2:])
    return lifted * (lengths / lifted.norm(dim=1, keepdim=True).clamp(min=1e-6))


def _image_conv(in_channels: int, norm: str) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, _IMAGE_CHANNELS, kernel_size=3, padding=1, stride=2),
        get_norm(norm, _IMAGE_CHANNELS) or nn.Identity(),
        nn.ReLU(inplace=True),
    ]


class _Up(nn.Module):
    """Doubles the map, then mixes in the image's features of that size."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv_1 = _DoubleConv(in_channels // 2 + _IMAGE_CHANNELS, out_channels, norm)

    def forward(self, x: Tensor, image_2x: Tensor) -> Tensor:
        return self.conv_1(torch.cat([self.up(x), image_2x], dim=1))


class _DoubleConv(nn.Module):
    """Two 3×3 convolutions; a module of its own because the authors' files name it."""

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
