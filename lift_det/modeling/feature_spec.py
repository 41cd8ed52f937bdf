"""Description of the features that an upsampler was trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from torch import nn

from lift_det.checkpoint import CheckpointError


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Description of a ViT's features. Fields that are None are unknown and match anything.

    It is stored in the files of upsamplers and in checkpoints of models with an upsampler.
    """

    backbone: str | None = None  # PlainViT.description
    in_channels: int | None = None
    patch_size: int | None = None  # pixels
    layer: int | None = None  # index of the block, from 0
    facet: str | None = None
    final_norm: bool | None = None
    weights: str | None = None  # weights_fingerprint of the ViT
    pixel_mean: tuple[float, ...] | None = None  # RGB, 0 to 255; not compared
    pixel_std: tuple[float, ...] | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> FeatureSpec:
        """Parses a file's metadata; raises CheckpointError for an invalid value. Other keys are ignored."""
        try:
            return cls(**{name: parse(metadata[name]) for name, parse in _PARSE.items() if name in metadata})
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"The metadata of a LiFT's file is invalid: {error}. Train it again.") from error

    def to_metadata(self) -> dict[str, str]:
        """Returns the known fields as text."""
        return {name: _to_text(value) for name, value in vars(self).items() if value is not None}

    def check(self, given: FeatureSpec, ignore_mismatch: Sequence[str] = (), source: str = "This LiFT") -> None:
        """Checks that a LiFT which was trained on these features can be used with others.

        Args:
            given: the other features.
            ignore_mismatch: names of fields that may differ.
            source: name of the LiFT for the error message.

        Raises:
            CheckpointError: a field is known on both sides and differs. The message has both values.
            ValueError: ``ignore_mismatch`` has an unknown field.
        """
        check_field_names(ignore_mismatch)
        different = {}
        for name in COMPARED:
            ours, theirs = getattr(self, name), getattr(given, name)
            if name in ignore_mismatch or None in (ours, theirs):
                continue
            values = (_to_text(ours), _to_text(theirs)) if ours != theirs else None
            if name == "weights":
                values = first_difference(ours, theirs)
            if values is not None:
                different[name] = values
        if different:
            lines = "".join(f"  {name}: trained with '{a}', given '{b}'\n" for name, (a, b) in different.items())
            raise CheckpointError(
                f"{source} was trained on other features than it is given:\n{lines}"
                "Use the ViT, its weights and the settings that the LiFT was trained with, or train a LiFT on these "
                f"features. To ignore the difference: ignore_mismatch={list(different)}."
            )


#: fields that :meth:`FeatureSpec.check` compares
COMPARED = ("backbone", "in_channels", "patch_size", "layer", "facet", "final_norm", "weights")


def check_field_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is not in :data:`COMPARED`."""
    unknown = sorted(set(names) - set(COMPARED))
    if unknown:
        raise ValueError(f"ignore_mismatch has {unknown}; the fields are {list(COMPARED)}.")


def weights_fingerprint(module: nn.Module) -> str:
    """Returns the root mean square of each parameter with two or more dimensions, to four digits, joined by spaces.

    Position embeddings are left out, because their values depend on the model's image size.
    """
    return " ".join(
        f"{parameter.detach().float().square().mean().sqrt().item():.4g}"
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and not name.endswith("pos_embed")
    )


def first_difference(a: str, b: str, tolerance: float = 0.01) -> tuple[str, str] | None:
    """Returns the first pair of numbers whose relative difference exceeds ``tolerance``, as text, or None."""
    for index, pair in enumerate(zip_longest(a.split(), b.split(), fillvalue="nan")):
        if not math.isclose(*map(float, pair), rel_tol=tolerance):  # NaN differs from everything
            return f"{pair[0]} in tensor {index}", f"{pair[1]} in tensor {index}"
    return None


def _to_text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _to_floats(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


_PARSE = {
    "backbone": str,
    "in_channels": int,
    "patch_size": int,
    "layer": int,
    "facet": str,
    "final_norm": {"true": True, "false": False}.__getitem__,
    "weights": str,
    "pixel_mean": _to_floats,
    "pixel_std": _to_floats,
}
