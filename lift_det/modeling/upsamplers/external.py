"""Upsamplers of other projects (AnyUp, JAFAR, LoftUp, FeatUp, …) behind lift_det's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import FeatureUpsampler, check_inputs, register_upsampler, resize, scaled_size

ARGUMENTS = ("image", "features", "output_size")


@register_upsampler("external")
class ExternalUpsampler(FeatureUpsampler):
    """Adapts a module of another project, whose arguments come in an order of its own.

    AnyUp, whose call is ``upsampler(image, features, output_size)`` and which takes any ViT's features::

        # torch.hub downloads its code and weights, and runs them; it asks first, unless trust_repo=True
        lift = ExternalUpsampler("wimmerth/anyup:anyup", trust_repo=True)
        lift = ExternalUpsampler(anyup_module)  # or a module that you have built and loaded yourself

    In a config ``model.backbone.lift = L(ExternalUpsampler)(source="wimmerth/anyup:anyup")``. JAFAR is called the same
    way; LoftUp and others that take ``(features, image)`` are
    ``ExternalUpsampler(module, arguments=("features", "image"))``.

    Whether the module's weights suit the ViT's features is for you to know: nothing is checked.
    """

    def __init__(
        self,
        source: Callable[..., Tensor] | str,
        arguments: Sequence[str] = ARGUMENTS,
        **hub_arguments: Any,
    ) -> None:
        """
        Args:
            source: a module or function, or ``"OWNER/REPOSITORY:ENTRY"`` for :func:`torch.hub.load`, which runs the
                repository's code.
            arguments: what ``source`` is called with, in its order: ``"image"`` (N, 3, H, W), ``"features"``
                (N, C, h, w) and ``"output_size"`` (height, width). Without ``"output_size"`` it is given the image
                resized to that, because such modules upsample to the image's size.
            hub_arguments: go to :func:`torch.hub.load` (``trust_repo=True``) and the hub's entry.

        Raises:
            ValueError: other arguments, or a text that names no entry of a repository.
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
            raise ValueError(f"{sorted(hub_arguments)} are for an entry of torch.hub, and source is a module.")
        self.arguments = tuple(arguments)
        self.module = source if isinstance(source, nn.Module) else _Function(source)

    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """See :meth:`FeatureUpsampler.forward`; what comes in another size is resized bilinearly."""
        check_inputs(images, features)
        output_size = output_size or scaled_size(features)
        if "output_size" not in self.arguments:
            images = resize(images, output_size)
        given = {"image": images, "features": features, "output_size": output_size}
        return resize(self.module(*(given[name] for name in self.arguments)), output_size)


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Tensor:
        return self.function(*arguments)
