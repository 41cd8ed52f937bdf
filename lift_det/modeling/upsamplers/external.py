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
    """Wraps a module of another project. ::

        # torch.hub downloads AnyUp's code and weights, and runs them; it asks first, unless trust_repo=True
        lift = ExternalUpsampler("wimmerth/anyup:anyup", trust_repo=True)
        lift = ExternalUpsampler(anyup_module)  # or a module that you have loaded yourself

    In a config: ``model.backbone.lift = L(ExternalUpsampler)(source="wimmerth/anyup:anyup")``. JAFAR has the same
    call; for LoftUp and others with ``(features, image)`` use ``arguments=("features", "image")``. Whether the module's
    weights suit the ViT is not checked.
    """

    def __init__(
        self, source: Callable[..., Tensor] | str, arguments: Sequence[str] = ARGUMENTS, **hub_arguments: Any
    ) -> None:
        """
        Args:
            source: a module or function, or ``"OWNER/REPOSITORY:ENTRY"`` for :func:`torch.hub.load`, which runs the
                repository's code.
            arguments: of ``source``, in its order: ``"image"`` (N, 3, H, W), ``"features"`` (N, C, h, w) and
                ``"output_size"`` (height, width). Without ``"output_size"`` the image is resized to the output size,
                because such modules upsample to the image's size.
            hub_arguments: for :func:`torch.hub.load` and the entry.

        Raises:
            ValueError: other arguments, or a ``source`` without an entry.
        """
        super().__init__()
        if not {"image", "features"} <= set(arguments) <= set(ARGUMENTS):
            raise ValueError(f"arguments: expected 'image', 'features' and perhaps 'output_size', got {arguments}.")
        if isinstance(source, str):
            repository, _, entry = source.partition(":")
            if not entry:
                raise ValueError(f"source '{source}': expected a module, or 'OWNER/REPOSITORY:ENTRY' of torch.hub.")
            source = torch.hub.load(repository, entry, **hub_arguments)
        elif hub_arguments:
            raise ValueError(f"{sorted(hub_arguments)} are for torch.hub, and source is a module.")
        self.arguments = tuple(arguments)
        self.module = source  # a function is no submodule, and has no weights

    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """See :meth:`FeatureUpsampler.forward`. A result of another size is resized bilinearly."""
        check_inputs(images, features)
        output_size = output_size or scaled_size(features)
        if "output_size" not in self.arguments:
            images = resize(images, output_size)
        given = {"image": images, "features": features, "output_size": output_size}
        return resize(self.module(*(given[name] for name in self.arguments)), output_size)
