"""Which features of which ViT: what a LiFT was trained on, compared with what it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from lift_det.checkpoint import CheckpointError


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Describes the features that a ViT gives. A field that is None is unknown, and equal to anything.

    It stands in the metadata of a LiFT's file and beside a LiFT's tensors in every checkpoint, each field under its
    own name.

    Attributes:
        backbone: the network, without its weights (:attr:`PlainViT.description`).
        in_channels: C of the map.
        patch_size: pixels.
        layer: the block, counted from 0.
        facet: ``"token"``, ``"query"``, ``"key"`` or ``"value"``.
        final_norm: whether the ViT's final norm is applied. (``norm`` in a LiFT's file is LiFT's own normalisation.)
        weights: the ViT's, as :func:`weights_fingerprint` describes them.
        pixel_mean, pixel_std: of the ViT's images, RGB, 0 to 255. They are recorded and not compared.
    """

    backbone: str | None = None
    in_channels: int | None = None
    patch_size: int | None = None
    layer: int | None = None
    facet: str | None = None
    final_norm: bool | None = None
    weights: str | None = None
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> FeatureSpec:
        """Reads a spec from a file's metadata; other keys are ignored.

        Raises:
            CheckpointError: a value that cannot be read.
        """
        try:
            return cls(**{name: read(metadata[name]) for name, read in _READ.items() if name in metadata})
        except ValueError as error:
            raise CheckpointError(f"The metadata of a LiFT's file cannot be read: {error}. Train it again.") from error

    def to_metadata(self) -> dict[str, str]:
        """The fields that are known, as strings."""
        return {name: _text(value) for name, value in vars(self).items() if value is not None}

    def differences(self, given: FeatureSpec, allow: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """Compares what a LiFT was trained on (``self``) with what it is given.

        Args:
            given: the other features.
            allow: names of fields that may differ.

        Returns:
            The fields that are known on both sides and differ, with both values as text.

        Raises:
            ValueError: a name in ``allow`` that is not compared.
        """
        check_field_names(allow)
        found = {}
        for name in COMPARED:
            ours, theirs = getattr(self, name), getattr(given, name)
            if name in allow or ours is None or theirs is None:
                continue
            if name == "weights":
                if not same_weights(ours, theirs):
                    found[name] = _from_first_difference(ours, theirs)
            elif ours != theirs:
                found[name] = (_text(ours), _text(theirs))
        return found

    def check(self, given: FeatureSpec, allow: Sequence[str] = (), source: str = "This LiFT") -> None:
        """Raises an error where :meth:`differences` finds any.

        Args:
            given, allow: as in :meth:`differences`.
            source: what the message calls the LiFT.

        Raises:
            CheckpointError: something differs; the message has both sides of each.
            ValueError: as :meth:`differences`.
        """
        different = self.differences(given, allow)
        if different:
            lines = "".join(f"  {name}: trained with '{a}', given '{b}'\n" for name, (a, b) in different.items())
            raise CheckpointError(
                f"{source} was trained on other features than it is given here:\n{lines}"
                "Name the LiFT that was trained on this ViT, give the ViT the settings and weights that the LiFT was "
                f"trained with, or train a LiFT on these features. If the difference is meant: "
                f"allow_lift={list(different)}."
            )


#: the fields in which a LiFT and the features that it is given have to agree
COMPARED = ("backbone", "in_channels", "patch_size", "layer", "facet", "final_norm", "weights")


def check_field_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is not in :data:`COMPARED`."""
    unknown = sorted(set(names) - set(COMPARED))
    if unknown:
        raise ValueError(f"allow_lift names {unknown}; what is compared is {list(COMPARED)}.")


def weights_fingerprint(module: nn.Module) -> str:
    """Describes weights so briefly that it fits into a file's metadata, and so that half precision changes nothing.

    Args:
        module: any module.

    Returns:
        The root mean square of each parameter of two or more dimensions, four significant digits each, joined by
        spaces. Position embeddings are left out: they are resized to the grid that a model is built for.
    """
    return " ".join(
        f"{parameter.detach().float().square().mean().sqrt().item():.4g}"
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and not name.endswith("pos_embed")
    )


def same_weights(a: str, b: str, tolerance: float = 0.01) -> bool:
    """Whether two results of :func:`weights_fingerprint` are of the same weights.

    Args:
        a, b: the fingerprints.
        tolerance: relative, of each number.
    """
    return len(a.split()) == len(b.split()) and _first_difference(a, b, tolerance) is None


def _first_difference(a: str, b: str, tolerance: float = 0.01) -> int | None:
    """Index of the first number that differs in two fingerprints of one length."""
    for i, (first, second) in enumerate(zip(map(float, a.split()), map(float, b.split()), strict=True)):
        # written so that NaN differs from everything
        if not abs(first - second) <= tolerance * max(abs(first), abs(second)):
            return i
    return None


def _from_first_difference(a: str, b: str) -> tuple[str, str]:
    """Cuts two fingerprints to where they differ, for a message."""
    first, second = a.split(), b.split()
    if len(first) != len(second):
        return f"{len(first)} tensors", f"{len(second)} tensors"
    start = _first_difference(a, b)
    first, second = first[start : start + 4], second[start : start + 4]
    return f"tensor {start} on: {' '.join(first)} …", f"tensor {start} on: {' '.join(second)} …"


def _read_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"expected 'true' or 'false', got '{text}'")
    return text == "true"


def _read_floats(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


_READ = {
    "backbone": str,
    "in_channels": int,
    "patch_size": int,
    "layer": int,
    "facet": str,
    "final_norm": _read_bool,
    "weights": str,
    "pixel_mean": _read_floats,
    "pixel_std": _read_floats,
}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
