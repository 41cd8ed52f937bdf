"""Building upsamplers by name or from a file, for a ViT."""

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
    """Builds an upsampler by its registered name, or a trained one from its file.

    Args:
        name: registered name, such as ``"lift"``, ``"lift_plus"`` or ``"bilinear"``. Default: that of the checkpoint,
            or ``"lift"``.
        in_channels: C of the ViT's features.
        patch_size: of the ViT, in pixels.
        checkpoint: a file for :func:`lift_det.load_lift`. Other arguments are not needed if the file states them.
        settings: other arguments of the upsampler's class. None stands for the file's value or the class's default.

    Raises:
        ValueError: the name is not registered, or the class has no such setting.
        CheckpointError: the file cannot be loaded, or contradicts an argument.
    """
    _check_name(name)
    sizes = {"in_channels": in_channels, "patch_size": patch_size}
    if checkpoint:
        return UpsamplerFile(checkpoint).build(name=name, **sizes, **settings)
    upsampler = UPSAMPLERS[name or "lift"]
    parameters = inspect.signature(upsampler).parameters
    settings.update({key: value for key, value in sizes.items() if key in parameters})
    settings = {key: value for key, value in settings.items() if value is not None}
    unknown = sorted(settings.keys() - parameters.keys())
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise ValueError(f"'{upsampler.name}' has no setting {', '.join(unknown)}; it has {', '.join(parameters)}.")
    return upsampler(**settings)


class LazyUpsampler:
    """Arguments of :func:`build_upsampler` for configs. The model builds the upsampler when it knows its ViT.

    Example: ``model.backbone.lift = L(LazyUpsampler)(name=None, checkpoint="")``.
    """

    def __init__(self, name: str | None = None, checkpoint: str | os.PathLike = "", **settings: Any) -> None:
        """
        Args:
            name: registered name. Default: that of the checkpoint, or the model's default.
            checkpoint, settings: see :func:`build_upsampler`.
        """
        _check_name(name)
        self.name = name
        self.checkpoint = checkpoint
        self.settings = settings

    def build(self, in_channels: int | None, patch_size: int | None) -> FeatureUpsampler:
        """Builds the upsampler. Sizes in ``settings`` take precedence over these."""
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
    """Builds a lazy upsampler, and checks that an upsampler fits the features of a model.

    Args:
        lift: the upsampler, or None.
        spec: the features, without a fingerprint of the ViT's weights.
        source: what computes the features. Its weights are compared too if it was built with them. Those of a detector
            are often loaded later, from ``train.init_checkpoint``.
        ignore_mismatch: fields of ``spec`` that may differ from the features that the upsampler was trained on.

    Raises:
        CheckpointError: the upsampler was trained on other features.
        ValueError: the features have another width or patch size than the upsampler, or ``lift`` is no upsampler.
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
    # a fingerprint reads all weights, so only if it can be compared
    if source is not None and source.weights_given and lift.trained_on.weights is not None:
        lift.trained_on.check(source.feature_spec(), ignore_mismatch)
    return lift


def _check_name(name: str | None) -> None:
    if name is not None and name not in UPSAMPLERS:
        raise ValueError(f"There is no upsampler '{name}': expected one of {', '.join(sorted(UPSAMPLERS))}.")
