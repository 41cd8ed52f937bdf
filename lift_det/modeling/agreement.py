"""Which features a LiFT was trained on, and whether those that it is given are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import nn

from lift_det.checkpoint import CheckpointError

from .lift import FeatureUpsampler, LiFT

#: The settings in which a LiFT and the features that it is given have to agree. ``final_norm`` is the ViT's; a LiFT's
#: file has a ``norm`` of its own, which is LiFT's normalisation layer.
COMPARED = ("backbone", "in_channels", "patch_size", "layer", "facet", "final_norm", "weights")


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
    """Whether two fingerprints are of the same weights.

    Args:
        a: of :func:`weights_fingerprint`.
        b: likewise.
        tolerance: relative, of each number.
    """
    return len(a.split()) == len(b.split()) and _first_difference(a, b, tolerance) is None


def check_lift(
    lift: nn.Module | None, settings: Mapping[str, str], *, allow: Sequence[str] = (), source: str = "This LiFT"
) -> None:
    """Refuses a LiFT that was trained on other features than those it is to upsample.

    Only what both sides state is compared: a LiFT that was not read from a file, or from one of the paper's authors',
    states nothing and passes.

    Args:
        lift: its ``metadata`` says what it was trained on.
        settings: of the features, as :meth:`lift_det.FeatureExtractor.settings` gives them. Leave ``weights`` out
            where the ViT's weights are still to come.
        allow: the names in :data:`COMPARED` that may differ.
        source: what the message calls the LiFT.

    Raises:
        CheckpointError: something differs; the message names both sides.
        ValueError: a name in ``allow`` is none that is compared.
    """
    unknown = sorted(set(allow) - set(COMPARED))
    if unknown:
        raise ValueError(f"allow_lift names {unknown}; what is compared is {list(COMPARED)}.")
    metadata: Mapping[str, str] = getattr(lift, "metadata", {})
    different, lines = [], []
    for name in COMPARED:
        if name in allow or name not in metadata or name not in settings:
            continue
        trained_on, given = metadata[name], settings[name]
        if name == "weights":
            if same_weights(trained_on, given):
                continue
            trained_on, given = _from_first_difference(trained_on, given)
        elif trained_on == given:
            continue
        different.append(name)
        lines.append(f"  {name}: trained with '{trained_on}', given '{given}'\n")
    if different:
        raise CheckpointError(
            f"{source} was trained on other features than it is given here:\n{''.join(lines)}"
            "Name the LiFT that was trained on this ViT, give the ViT the settings and weights that the LiFT was "
            f"trained with, or train a LiFT on these features. If the difference is meant: allow_lift={different}."
        )


def check_lift_on_net(lift: nn.Module | None, net: nn.Module, allow: Sequence[str] = ()) -> None:
    """Does :func:`check_lift` when a model is built, for what gives ``settings()`` and says whether it has weights.

    The weights are compared only if they are there: those of a detector often come later, from an ``init_checkpoint``.

    Args:
        lift: as in :func:`check_lift`.
        net: what gives the features. A backbone without ``settings()`` states nothing, and passes.
        allow: as in :func:`check_lift`.
    """
    settings: dict[str, str] = {}
    if getattr(lift, "metadata", None) and hasattr(net, "settings"):  # reading all weights is for those who need it
        settings = dict(net.settings())
        if not net.weights_given:
            del settings["weights"]
    check_lift(lift, settings, allow=allow)
    if isinstance(lift, LiFT) and hasattr(net, "describe_features"):
        # for checkpoints that are loaded later, and for those that are written
        features = net.describe_features()
        lift.features = {name: value for name, value in features.items() if name in COMPARED and name not in allow}


def check_lift_shape(lift: FeatureUpsampler | None, vit: ShapeSpec) -> None:
    """Refuses a LiFT that cannot run on a map of ``vit.channels`` channels and patches of ``vit.stride`` pixels.

    Raises:
        ValueError: the width or the patch size is another.
    """
    if isinstance(lift, LiFT) and (lift.in_channels, lift.patch_size) != (vit.channels, vit.stride):
        raise ValueError(
            f"LiFT is for {lift.in_channels} channels and patches of {lift.patch_size} pixels, the ViT has "
            f"{vit.channels} and {vit.stride}: set lift.in_channels and lift.patch_size to the ViT's."
        )


def _first_difference(a: str, b: str, tolerance: float = 0.01) -> int | None:
    """Index of the first number that differs in two fingerprints of one length."""
    for i, (first, second) in enumerate(zip(map(float, a.split()), map(float, b.split()), strict=True)):
        # written so that a number that is none (nan) differs from all
        if not abs(first - second) <= tolerance * max(abs(first), abs(second)):
            return i
    return None


def _from_first_difference(a: str, b: str) -> tuple[str, str]:
    """Two fingerprints that differ, cut for a message to where they do."""
    first, second = a.split(), b.split()
    if len(first) != len(second):
        return f"{len(first)} tensors", f"{len(second)} tensors"
    start = _first_difference(a, b)
    first, second = first[start : start + 4], second[start : start + 4]
    return f"tensor {start} on: {' '.join(first)} …", f"tensor {start} on: {' '.join(second)} …"
