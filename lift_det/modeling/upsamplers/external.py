"""Adapter for upsamplers of other projects (AnyUp, JAFAR, LoftUp, FeatUp)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import FeatureUpsampler, check_inputs, register_upsampler, resize, scaled_size

ARGUMENTS = ("image", "features", "output_size")


@register_upsampler("external")
class ExternalUpsampler(FeatureUpsampler):
    """Wraps an upsampler of another project. ::

        lift = ExternalUpsampler(anyup)  # a module that you have loaded
        # downloads AnyUp's code and weights and runs them; torch.hub asks first without trust_repo=True
        lift = ExternalUpsampler("wimmerth/anyup:anyup", trust_repo=True)

    AnyUp and JAFAR work with the default ``arguments``; LoftUp needs ``arguments=("features", "image")``. It is not
    checked that the module was trained for the ViT.
    """

    def __init__(
        self, source: Callable[..., Tensor] | str, arguments: Sequence[str] = ARGUMENTS, **hub_arguments: Any
    ) -> None:
        """
        Args:
            source: a module or function, or ``"OWNER/REPOSITORY:ENTRY"`` for :func:`torch.hub.load`, which runs the
                repository's code.
            arguments: the arguments of ``source`` in its order: ``"image"`` (N, 3, H, W), ``"features"`` (N, C, h, w)
                and ``"output_size"`` (height, width). Without ``"output_size"``, ``source`` is expected to upsample to
                the size of the image, which is resized to the output size first.
            hub_arguments: further arguments of :func:`torch.hub.load`.

        Raises:
            ValueError: unknown arguments, or a ``source`` without an entry.
        """
        super().__init__()
        if not {"image", "features"} <= set(arguments) <= set(ARGUMENTS):
            raise ValueError(f"arguments: expected 'image', 'features' and optionally 'output_size', got {arguments}.")
        if isinstance(source, str):
            repository, _, entry = source.partition(":")
            if not entry:
                raise ValueError(f"source '{source}': expected a module, or 'OWNER/REPOSITORY:ENTRY' of torch.hub.")
            source = torch.hub.load(repository, entry, **hub_arguments)
        elif hub_arguments:
            raise ValueError(f"{sorted(hub_arguments)} are for torch.hub, and source is a module.")
        self.arguments = tuple(arguments)
        self.module = source

    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """As :meth:`FeatureUpsampler.forward`. A result of another size is resized bilinearly."""
        check_inputs(images, features)
        output_size = output_size or scaled_size(features)
        if "output_size" not in self.arguments:
            images = resize(images, output_size)
        given = {"image": images, "features": features, "output_size": output_size}
        return resize(self.module(*(given[name] for name in self.arguments)), output_size)
