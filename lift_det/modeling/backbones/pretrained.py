"""Finding a pretrained ViT by timm's name or by a file of weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from lift_det.checkpoint import CheckpointError, convert_vit, read_state_dict

from .timm_vit import TimmViT, plain_vit_without_weights

#: width and depth -> the size in timm's names
_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
_WEIGHT_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".pkl")
_IMAGENET_STATISTICS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


@dataclasses.dataclass(frozen=True)
class NamedViT:
    """A pretrained ViT that is not built yet; see :func:`find_vit`."""

    name: str  # timm's name of the architecture and, if there is no checkpoint, of the weights
    checkpoint: str  # file of weights; empty for timm's weights
    embed_dim: int
    patch_size: int  # pixels
    num_heads: int | None = None  # if it differs from timm's
    pixel_mean: Sequence[float] | None = None  # RGB, 0 to 255; if it differs from timm's
    pixel_std: Sequence[float] | None = None

    def arguments(self) -> dict[str, object]:
        """Returns the arguments for :class:`lift_det.TimmViT`."""
        heads = {} if self.num_heads is None else {"num_heads": self.num_heads}
        return {"name": self.name, "pretrained": not self.checkpoint, "checkpoint": self.checkpoint, **heads}

    def build(self) -> TimmViT:
        """Builds the ViT with its weights; without a checkpoint timm downloads them."""
        net = TimmViT(**self.arguments())
        if self.pixel_mean is not None:
            net.pixel_mean, net.pixel_std = tuple(self.pixel_mean), tuple(self.pixel_std)
        return net


def find_vit(backbone: str, architecture: str | None = None, num_heads: int | None = None) -> NamedViT:
    """Finds the ViT for one of timm's names or for a file of weights. Downloads nothing.

    Args:
        backbone: timm's name of a pretrained ViT, or a file in any format of
            :func:`lift_det.checkpoint.recognise_vit`. Text with a folder or a suffix such as ``.pth`` is a file.
        architecture: timm's name of the ViT in the file. Needed if it cannot be inferred from the file.
        num_heads: number of heads of the ViT in the file. Default: that of timm's architecture.

    Raises:
        ValueError: timm has no such model, it is not a plain ViT, or an architecture is given with a name.
        CheckpointError: the file cannot be read, or its architecture cannot be inferred.
    """
    is_file = os.path.sep in backbone or os.path.isfile(backbone) or backbone.endswith(_WEIGHT_SUFFIXES)
    name, statistics = backbone, {}
    if is_file:
        state, report = convert_vit(read_state_dict(backbone)[0])
        name = architecture or _implied_architecture(backbone, state, report.format)
        if report.format == "mocov3":  # timm's weights of the same name have other image statistics
            num_heads, statistics = num_heads or 12, _IMAGENET_STATISTICS
    elif architecture:
        raise ValueError(f"An architecture ('{architecture}') belongs to a checkpoint; '{backbone}' is already a name.")
    model = plain_vit_without_weights(name)
    return NamedViT(
        name,
        checkpoint=backbone if is_file else "",
        embed_dim=model.embed_dim,
        patch_size=model.patch_embed.patch_size[0],
        num_heads=num_heads,
        **statistics,
    )


def _implied_architecture(path: str, state: dict, format: str) -> str:
    """Returns timm's name of a known release. Files do not state the number of heads; its width implies it."""
    stem = state.get("patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    size = _SIZES.get((stem.shape[0], len(blocks))) if stem is not None else None
    patch = stem.shape[-1] if stem is not None else None
    registers = f"_reg{state['reg_token'].shape[1]}" if "reg_token" in state else ""
    names = {
        "dino": f"vit_{size}_patch{patch}_224.dino",
        "mae": f"vit_{size}_patch{patch}_224.mae",
        "deit": f"deit_{size}_distilled_patch{patch}_224.fb_in1k",
        "mocov3": f"vit_{size}_patch{patch}_224",
    }
    if "blocks.0.ls1.gamma" in state and patch == 14:
        names[format] = f"vit_{size}_patch14{registers}_dinov2.lvd142m"
    if size is None or format not in names:
        raise CheckpointError(
            f"The architecture of '{path}' (format: {format}, patches of {patch} pixels, {len(blocks)} blocks) cannot "
            "be inferred, because its number of heads is not in the file: state architecture (--architecture), timm's "
            "name of the ViT, such as vit_small_patch16_224.dino."
        )
    return names[format]
