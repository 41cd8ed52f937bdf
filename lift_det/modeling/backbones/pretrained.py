"""A pretrained ViT by one name: timm's, or a file of weights, which implies its architecture or is told it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import timm
import torch

from lift_det.checkpoint import CheckpointError, convert_vit, read_state_dict

from .timm_vit import TimmViT, check_plain_vit

#: width and depth -> the size in timm's names
_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
_WEIGHT_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".pkl")
_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class NamedViT:
    """What :func:`find_vit` found out, before any weights are built.

    Attributes:
        name: timm's, of the architecture and, without a checkpoint, of its weights.
        checkpoint: the file of weights; empty for timm's own, which timm downloads.
        embed_dim: the ViT's width.
        patch_size: in pixels.
        num_heads: where the weights have another number than timm's architecture, else None.
        pixel_mean: RGB, 0 to 255, of the weights' images, where they are other than timm's name implies, else None.
        pixel_std: as pixel_mean.
    """

    name: str
    checkpoint: str
    embed_dim: int
    patch_size: int
    num_heads: int | None = None
    pixel_mean: Sequence[float] | None = None
    pixel_std: Sequence[float] | None = None

    def arguments(self) -> dict[str, object]:
        """The arguments of :class:`lift_det.TimmViT` that make it with its weights."""
        heads = {} if self.num_heads is None else {"num_heads": self.num_heads}
        return {"name": self.name, "pretrained": not self.checkpoint, "checkpoint": self.checkpoint, **heads}

    def build(self) -> TimmViT:
        """The ViT with its weights, which timm downloads where there is no checkpoint; ``pixel_mean`` is right."""
        net = TimmViT(**self.arguments())
        if self.pixel_mean is not None:
            net.pixel_mean, net.pixel_std = tuple(self.pixel_mean), tuple(self.pixel_std)
        return net


def find_vit(backbone: str, architecture: str | None = None, num_heads: int | None = None) -> NamedViT:
    """Says which ViT a name or a file of weights means. Nothing is downloaded.

    Args:
        backbone: timm's name of a pretrained ViT, or a file of weights in any format that
            :func:`lift_det.checkpoint.recognise_vit` knows. What has a folder or a suffix of weights is a file.
        architecture: timm's name of the ViT in the file, where the file does not imply it.
        num_heads: of the ViT in the file, where timm's architecture has others.

    Raises:
        ValueError: timm has no such model, it is no plain ViT, or an architecture is given for a name.
        CheckpointError: the file cannot be read, or does not imply its architecture.
    """
    is_file = os.path.sep in backbone or os.path.isfile(backbone) or backbone.endswith(_WEIGHT_SUFFIXES)
    heads, statistics = None, {}
    if is_file:
        name, heads, statistics = _read_architecture(backbone, architecture)
    elif architecture:
        raise ValueError(f"An architecture ('{architecture}') belongs to a checkpoint; '{backbone}' is already a name.")
    else:
        name = backbone
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no model '{name}', and there is no file of that name.")
    check_plain_vit(name)
    with torch.device("meta"):  # sizes alone: nothing is allocated
        model = timm.create_model(name)
    return NamedViT(
        name,
        checkpoint=backbone if is_file else "",
        embed_dim=model.embed_dim,
        patch_size=model.patch_embed.patch_size[0],
        num_heads=num_heads or heads,
        **statistics,
    )


def _read_architecture(path: str, named: str | None) -> tuple[str, int | None, dict[str, Sequence[float]]]:
    """timm's name of the ViT in a file, its heads where timm's are others, and its images' statistics.

    The sizes are in the file. The number of heads is not, so a name is given only for releases which have one number of
    heads for each size; for others the caller has to say it.
    """
    state, report = convert_vit(read_state_dict(path)[0])
    heads, statistics = None, {}
    if report.format == "mocov3":
        # its ViTs have names of other weights in timm: those weights' image statistics are not to be taken
        heads, statistics = 12, {"pixel_mean": _IMAGENET_MEAN, "pixel_std": _IMAGENET_STD}
    if named:
        return named, heads, statistics
    stem = state.get("patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    size = _SIZES.get((stem.shape[0], len(blocks))) if stem is not None else None
    if size is None:
        raise CheckpointError(
            f"'{path}' (format: {report.format}) is of no usual size: say architecture (on the command line "
            "--architecture), timm's name of its ViT."
        )
    patch = stem.shape[-1]
    registers = f"_reg{state['reg_token'].shape[1]}" if "reg_token" in state else ""
    if "blocks.0.ls1.gamma" in state and patch == 14:
        return f"vit_{size}_patch14{registers}_dinov2.lvd142m", heads, statistics
    names = {
        "dino": f"vit_{size}_patch{patch}_224.dino",
        "mae": f"vit_{size}_patch{patch}_224.mae",
        # what proves the format is the token of distillation
        "deit": f"deit_{size}_distilled_patch{patch}_224.fb_in1k",
        "mocov3": f"vit_{size}_patch{patch}_224",
    }
    if report.format not in names:
        raise CheckpointError(
            f"'{path}' (format: {report.format}) is a ViT of width {stem.shape[0]} with {len(blocks)} blocks and "
            f"patches of {patch} pixels. Its number of heads and its images' statistics are not in the file: say "
            f"architecture (on the command line --architecture), timm's name of the ViT, such as "
            f"vit_{size}_patch{patch}_224.dino."
        )
    return names[report.format], heads, statistics
