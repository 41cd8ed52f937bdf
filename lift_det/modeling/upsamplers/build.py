"""Building upsamplers by name or from a file, and fitting them to a ViT."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..feature_spec import FeatureSpec, check_field_names
from .base import UPSAMPLERS, FeatureUpsampler
from .files import UpsamplerFile

if TYPE_CHECKING:
    from ..backbones import PlainViT
    from ..features import FeatureExtractor


def build_upsampler(
    name: str | None = None,
    in_channels: int | None = None,
    patch_size: int | None = None,
    *,
    checkpoint: str | os.PathLike = "",
    **settings: Any,
) -> FeatureUpsampler:
    """Builds a registered upsampler, or a trained one from its file.

    Args:
        name: in the registry, such as ``"lift"``, ``"lift_plus"`` or ``"bilinear"``. Default: the checkpoint's, or
            ``"lift"``.
        in_channels: C of the ViT's features.
        patch_size: of the ViT, in pixels.
        checkpoint: a file for :func:`lift_det.load_lift`. Arguments may be left out if the file states them.
        settings: other arguments of the class; those that are None are left out.

    Raises:
        ValueError: an unknown name.
        CheckpointError: the file contradicts an argument, or cannot be loaded.
    """
    _check_name(name)
    sizes = {"in_channels": in_channels, "patch_size": patch_size}
    if checkpoint:
        return UpsamplerFile(checkpoint).build(name=name, **sizes, **settings)
    upsampler = UPSAMPLERS[name or "lift"]
    parameters = inspect.signature(upsampler).parameters
    settings.update({key: value for key, value in sizes.items() if key in parameters})
    return upsampler(**{key: value for key, value in settings.items() if value is not None})


class LazyUpsampler:
    """Arguments of :func:`build_upsampler` without the ViT's width and patch size, for configs::

        model.backbone.lift = L(LazyUpsampler)(name=None, checkpoint="")

    The model builds the upsampler for its ViT.
    """

    def __init__(self, name: str | None = None, checkpoint: str | os.PathLike = "", **settings: Any) -> None:
        """
        Args:
            name: in the registry. Default: the checkpoint's, or the model's own default.
            checkpoint, settings: see :func:`build_upsampler`.
        """
        _check_name(name)
        self.name = name
        self.checkpoint = checkpoint
        self.settings = settings

    def build(self, in_channels: int | None, patch_size: int | None) -> FeatureUpsampler:
        """See :func:`build_upsampler`. Sizes in the settings have precedence; the model then checks them."""
        stated = {key: value for key, value in self.settings.items() if value is not None}
        sizes = {"in_channels": in_channels, "patch_size": patch_size}
        return build_upsampler(self.name, checkpoint=self.checkpoint, **{**sizes, **stated})


def fit_upsampler(
    lift: FeatureUpsampler | LazyUpsampler | None,
    spec: FeatureSpec,
    source: PlainViT | FeatureExtractor | None = None,
    *,
    ignore_mismatch: Sequence[str] = (),
) -> FeatureUpsampler | None:
    """Builds a lazy upsampler and checks that it suits the features.

    Args:
        lift: the upsampler.
        spec: of the features, without the ViT's weights.
        source: computes the features. Its weights are compared too if it was built with them; those of a detector often
            come later, from an ``init_checkpoint``.
        ignore_mismatch: fields of ``spec`` that may differ from the features that the upsampler was trained on.

    Raises:
        CheckpointError: it was trained on other features.
        ValueError: it does not fit the features' width or patch size, or is no upsampler.
    """
    check_field_names(ignore_mismatch)
    if lift is None:
        return None
    if isinstance(lift, LazyUpsampler):
        lift = lift.build(spec.in_channels, spec.patch_size)
    if not isinstance(lift, FeatureUpsampler):
        raise ValueError(
            f"lift is a {type(lift).__name__}; expected a lift_det.modeling.FeatureUpsampler, a LazyUpsampler or None. "
            "Wrap modules of other projects in ExternalUpsampler, and compile with lift.compile()."
        )
    lift.use_features(spec, ignore_mismatch)
    # reading all weights is slow, so only where they can be compared
    if source is not None and source.weights_given and lift.trained_on.weights is not None:
        lift.trained_on.check(source.feature_spec(), ignore_mismatch)
    return lift


def _check_name(name: str | None) -> None:
    if name is not None and name not in UPSAMPLERS:
        raise ValueError(f"There is no upsampler '{name}': it can be one of {', '.join(sorted(UPSAMPLERS))}.")
