"""Upsamplers by name or from a file, and the place in a config where one is built once its ViT is known."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any, Protocol

from ..feature_spec import FeatureSpec, check_field_names
from .base import UPSAMPLERS, FeatureUpsampler
from .files import UpsamplerFile


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
        name: in the registry: ``"lift"``, ``"lift_plus"``, ``"bilinear"``, …. None is what the checkpoint holds, or
            ``"lift"`` without one.
        in_channels: C, the ViT's width.
        patch_size: of the ViT, in pixels.
        checkpoint: a file of :func:`lift_det.save_lift`, of LiFT's training, of a detector, or of the paper's authors.
            What it says of itself need not be stated, and may not be contradicted.
        settings: other arguments of the class. None states nothing.

    Raises:
        ValueError: an unknown name, or a setting that the class does not have.
        CheckpointError: the file contradicts what is stated, or cannot be loaded.
    """
    _check_name(name)
    if checkpoint:
        stated = dict(settings, name=name, in_channels=in_channels, patch_size=patch_size)
        return UpsamplerFile(checkpoint).build(**stated)
    upsampler = UPSAMPLERS[name or "lift"]
    arguments = inspect.signature(upsampler).parameters
    settings = {key: value for key, value in settings.items() if value is not None}
    unknown = sorted(settings.keys() - arguments.keys())
    if unknown and not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        raise ValueError(
            f"The upsampler '{upsampler.name}' has no setting {', '.join(unknown)}: it has {[*arguments]}."
        )
    for size, value in (("in_channels", in_channels), ("patch_size", patch_size)):
        if size in arguments and value is not None:
            settings[size] = value
    return upsampler(**settings)


class LazyUpsampler:
    """Arguments of :func:`build_upsampler`, but for the ViT's width and patch size: what configs put into ``lift``.

    The model that gets it builds the upsampler for its ViT. In a config::

        model.backbone.lift = L(LazyUpsampler)(name=None, checkpoint="")

    With ``model.backbone.lift.checkpoint=FILE`` it is the trained upsampler in that file.
    """

    def __init__(self, name: str | None = None, checkpoint: str | os.PathLike = "", **settings: Any) -> None:
        """
        Args:
            name: in the registry; None is what the checkpoint holds, or what the model trains by default.
            checkpoint: see :func:`build_upsampler`.
            settings: see there, too.

        Raises:
            ValueError: an unknown name.
        """
        _check_name(name)
        self.name = name
        self.checkpoint = checkpoint
        self.settings = settings

    def with_default(self, name: str) -> LazyUpsampler:
        """The same, with ``name`` where neither a name nor a checkpoint says what is to be built."""
        return self if self.name or self.checkpoint else LazyUpsampler(name, **self.settings)

    def build(self, in_channels: int | None, patch_size: int | None) -> FeatureUpsampler:
        """See :func:`build_upsampler`. Sizes that are stated here go before the ViT's, which then refuses others."""
        stated = {key: value for key, value in self.settings.items() if value is not None}
        sizes = {"in_channels": in_channels, "patch_size": patch_size}
        return build_upsampler(self.name, checkpoint=self.checkpoint, **{**sizes, **stated})


class FeatureSource(Protocol):
    """What gives features and describes them: a ViT of :mod:`lift_det.modeling.backbones`, or a FeatureExtractor."""

    weights_given: bool

    def feature_spec(self, *, weights: bool = True) -> FeatureSpec: ...


def fit_upsampler(
    lift: FeatureUpsampler | LazyUpsampler | None,
    spec: FeatureSpec,
    source: FeatureSource | None = None,
    *,
    allow: Sequence[str] = (),
) -> FeatureUpsampler | None:
    """Gives a model its upsampler: builds it where that is still to be done, and checks it against the features.

    Args:
        lift: what the model was given.
        spec: of the features, without the ViT's weights.
        source: gives the features. Its weights are compared, too, if it was built with them: those of a detector
            often come later, from an ``init_checkpoint``.
        allow: fields of ``spec`` that may differ from what the upsampler was trained on.

    Raises:
        CheckpointError: it was trained on other features.
        ValueError: it cannot take these features, or it is no upsampler.
    """
    check_field_names(allow)
    if lift is None:
        return None
    if isinstance(lift, LazyUpsampler):
        lift = lift.build(spec.in_channels, spec.patch_size)
    if not isinstance(lift, FeatureUpsampler):
        raise ValueError(
            f"lift is a {type(lift).__name__}; expected a lift_det.modeling.FeatureUpsampler, a LazyUpsampler, or "
            "None. ExternalUpsampler takes modules of other projects; lift.compile() compiles one in place; a config "
            "whose lift is None has no place for a checkpoint: take one with LiFT."
        )
    lift.use_features(spec, allow)
    # reading all weights takes a while, and is for those who compare them
    if source is not None and source.weights_given and lift.trained_on.weights is not None:
        lift.trained_on.check(source.feature_spec(), allow)
    return lift


def _check_name(name: str | None) -> None:
    if name is not None and name not in UPSAMPLERS:
        raise ValueError(f"There is no upsampler '{name}': it can be one of {', '.join(sorted(UPSAMPLERS))}.")
