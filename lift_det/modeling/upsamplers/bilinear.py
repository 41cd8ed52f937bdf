"""Bilinear interpolation as an upsampler."""

from __future__ import annotations

from torch import Tensor

from .base import FeatureUpsampler, check_inputs, register_upsampler, resize, scaled_size


@register_upsampler("bilinear")
class BilinearUpsample(FeatureUpsampler):
    """Bilinear interpolation (``align_corners=False``). Ignores the image and has no parameters."""

    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        check_inputs(images, features)
        return resize(features, output_size or scaled_size(features))
