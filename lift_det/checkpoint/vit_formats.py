"""Weights of plain ViTs as the libraries and releases write them: which format it is, and its tensors in timm's names.

Formats are told apart by the names in the state dict, and by two facts in the values (see :func:`recognise_vit`), never
by the name of a file. Where releases write the same names, the answer is what the file proves and no more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .files import CheckpointError, strip_prefix
from .report import LoadReport

# Where a ViT can stand inside a checkpoint, behind "module." and "_orig_mod.", in the order they are preferred: the
# teacher and not the student, the encoder that was trained and not its running mean (MoCo v3's linear probe takes it).
_PREFIXES = (
    "",
    "backbone.net.vit.",
    "backbone.net.",
    "vit.",
    "teacher.backbone.",
    "base_encoder.",
    "backbone.",
    "student.backbone.",
    "deit.",
    "dinov2.",
    "dinov2_with_registers.",
)
_DATA_PARALLEL = ("module.", "_orig_mod.")
_TIMM_STEM = "patch_embed.proj.weight"
_HF_STEM = "embeddings.patch_embeddings.projection.weight"

_CLASSIFIER = {r"head(_dist)?\.|fc_norm\.|attn_pool\.": "classifier"}
_DETECTOR = {
    r"backbone\.(?!net\.)": "the rest of a detector",
    r"(proposal_generator|roi_heads|sem_seg_head)\.|pixel_(mean|std)$": "the rest of a detector",
}
_MASK_TOKEN = {r"mask_token$": "mask token, of pretraining only"}
_HF_HEADS = {
    r"pooler\.": "pooler of the class token",
    r"(\w+_)?classifier\.": "classifier",
    r"decoder\.": "decoder of pretraining",
    r"embeddings\.mask_token$": "mask token, of pretraining only",
}
# Names beside the encoder's that a format is known to have, and what they are. A feature map passes through none.
_LEFTOVERS: dict[str, dict[str, str]] = {
    "timm": _CLASSIFIER | _DETECTOR,
    "deit": _CLASSIFIER | _DETECTOR,
    "vitdet": _CLASSIFIER | _DETECTOR,
    "dino": {r"head\.(mlp|last_layer)\.": "projection head"},
    "dinov2": _CLASSIFIER
    | _DETECTOR
    | _MASK_TOKEN
    | {r"(student\.|teacher\.)?(dino|ibot)_head\.": "projection head", r"student\.|dino_loss\.|ibot_": "pretraining"},
    "mocov3": {r"head\.": "projection head", r"momentum_encoder\.|predictor\.": "pretraining"},
    "mae": _CLASSIFIER | _MASK_TOKEN | {r"decoder_": "decoder of pretraining"},
    "hf_vit": _HF_HEADS,
    "hf_dinov2": _HF_HEADS,
}
_HF_RENAMES = {
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"embeddings\.cls_token$": "cls_token",
    r"embeddings\.distillation_token$": "dist_token",
    r"embeddings\.register_tokens$": "register_tokens",
    r"embeddings\.position_embeddings$": "pos_embed",
    r"layernorm\.": "norm.",
    # "encoder.layer." in the files of the hub, "layers." in the modules of transformers 5
    r"(encoder\.)?layers?\.(\d+)\.": r"blocks.\2.",
}
# The first of each pair of names is what files of the hub have, the second what transformers 5 has in its modules.
_HF_BLOCK_RENAMES = {
    r"attention\.(?:attention\.query|q_proj)\.": "attn.q.",
    r"attention\.(?:attention\.key|k_proj)\.": "attn.k.",
    r"attention\.(?:attention\.value|v_proj)\.": "attn.v.",
    r"attention\.(?:output\.dense|o_proj)\.": "attn.proj.",
    r"(?:layernorm_before|norm1)\.": "norm1.",
    r"(?:layernorm_after|norm2)\.": "norm2.",
    r"(?:intermediate\.dense|mlp\.weights_in|mlp\.fc1)\.": "mlp.fc1.",
    r"(?:output\.dense|mlp\.weights_out|mlp\.down_proj|mlp\.fc2)\.": "mlp.fc2.",
    r"mlp\.gate_proj\.": "mlp.gate.",
    r"mlp\.up_proj\.": "mlp.up.",
    r"layer_scale([12])\.lambda1$": r"ls\1.gamma",
}
# What is one matrix in timm's names and several elsewhere, in the order they are stacked. In a SwiGLU the half that
# goes through SiLU comes first.
_FUSED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}


def recognise_vit(state_dict: Mapping[str, Tensor]) -> str:
    """Says which format a ViT's weights are in.

    * ``"dinov2"``: Meta's release, a training checkpoint, or blocks in chunks (``blocks.0.3.``).
    * ``"dino"``: Meta's training checkpoint, with its projection head beside ``backbone.``.
    * ``"mocov3"``: Meta's training checkpoint, or a bare encoder with MoCo v3's fixed positions.
    * ``"mae"``: Meta's, with the decoder, or a bare encoder with MAE's fixed positions.
    * ``"deit"``: a distillation token or classifier.
    * ``"hf_vit"``: transformers' ViT, DeiT and ViTMAE; ``"hf_dinov2"``: its Dinov2, with registers or without.
    * ``"vitdet"``: detectron2's ViT, bare or in a detector: relative positions, residual blocks, or ``backbone.net.``.
    * ``"timm"``: timm's VisionTransformer or Eva. Bare encoders of DINO and DeiT, fine-tuned ones of MAE and MoCo v3,
      and a detectron2 ViT without relative positions have the same names: nothing in them tells where they come from.
    * ``"other"``: none of these; timm itself converts some more (OpenCLIP, DINOv3, …).

    MAE and MoCo v3 both fix their positions to sines and cosines, MAE with the columns first and MoCo v3 with the rows:
    that is the one thing that is read from values.
    """
    return _recognise(*_encoder(state_dict))


def convert_vit(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Renames a ViT's weights to timm's names.

    Wrappings such as ``module.`` and ``backbone.`` come off; separate query, key and value become one ``qkv``, gate and
    up projection one ``fc1``; a DINOv2's registers become timm's ``reg_token`` and its class position a part of
    ``cls_token``, as timm's models with registers have it. LayerScale stays (``ls1.gamma``, or as timm's Eva has it).
    What the format is known to have beside the encoder is left out and reported. Every other name is kept, for the
    model to take or :func:`load_strictly` to refuse. No size is changed.

    Args:
        state_dict: as :func:`read_state_dict` gives it.

    Returns:
        ``(state_dict, report)``, the report with ``format``, ``mapped`` and ``ignored``. For format ``"other"`` the
        names are as they were, without ``module.``; for ``"vitdet"`` they are detectron2's.

    Raises:
        CheckpointError: two names of the file stand for one tensor, or one of query, key and value is missing.
    """
    encoder, outside, prefix = _encoder(state_dict)
    report = LoadReport(format=_recognise(encoder, outside, prefix))
    leftovers = {re.compile(pattern): reason for pattern, reason in _LEFTOVERS.get(report.format, {}).items()}
    converted: dict[str, Tensor] = {}
    for full, name, tensor in (
        *((prefix + name, name, tensor) for name, tensor in encoder.items()),
        *((name, name, tensor) for name, tensor in outside.items()),
    ):
        reason = next((reason for pattern, reason in leftovers.items() if pattern.match(name)), None)
        if reason:
            report.ignored[full] = reason
            continue
        new = _rename(name, report.format)
        if new in converted:
            raise CheckpointError(f"The checkpoint has '{new}' twice: '{full}' is the second.")
        converted[new] = tensor
        report.mapped[full] = new
    _fuse(converted, report)
    if "register_tokens" in converted and {"cls_token", "pos_embed"} <= converted.keys():
        _fold_class_position(converted, report)
    return converted, report


def check_head_count(format: str, embed_dim: int, num_heads: int) -> None:
    """Refuses the one release whose number of heads is not timm's: no shape tells it, and other heads, other features.

    Raises:
        CheckpointError: MoCo v3's ViT-S (384 wide) and not 12 heads.
    """
    if format == "mocov3" and embed_dim == 384 and num_heads != 12:
        raise CheckpointError(
            f"This is MoCo v3's ViT-S, which was trained with 12 heads; the model has {num_heads}. The weights "
            "would fit all the same, and give other features: state num_heads=12."
        )


def convert_to_detectron2(state: Mapping[str, Tensor], report: LoadReport, *, positions: int) -> dict[str, Tensor]:
    """Takes out of a converted ViT (:func:`convert_vit`) what detectron2's ViT does without: class token and last norm.

    Args:
        state: in timm's names, or detectron2's.
        report: what is left out is added to ``ignored``.
        positions: how many the model's ``pos_embed`` has; 0 if it has none. The class token's is left out if the
            model has none (``pretrain_use_cls_token=False``).

    Raises:
        CheckpointError: LayerScale, registers, a distillation token, a norm before the blocks or norms of queries and
            keys, none of which detectron2's ViT has; or positions of another grid.
    """
    for pattern, what in {
        r"blocks\.\d+\.(ls[12]\.gamma|gamma_[12])$": "LayerScale",
        r"(reg_token|register_tokens|storage_tokens)$": "registers",
        r"dist_token$": "a distillation token",
        r"norm_pre\.": "a norm before its blocks",
        r"blocks\.\d+\.attn\.[qk]_norm\.": "norms of queries and keys",
    }.items():
        found = next((name for name in state if re.match(pattern, name)), None)
        if found:
            raise CheckpointError(
                f"The ViT has {what} ('{found}'), which detectron2's ViT has not: without it the features are wrong. "
                "Use lift_det.TimmViT with the timm name of this ViT."
            )
    out = dict(state)
    for name in [name for name in out if name == "cls_token" or name.startswith("norm.")]:
        del out[name]
        report.ignore(name, "not in detectron2's ViT, whose map is of patches and without a last norm")
    given = out["pos_embed"].shape[1] if "pos_embed" in out else 0
    if given and given - 1 == positions and math.isqrt(positions) ** 2 == positions:
        out["pos_embed"] = out["pos_embed"][:, 1:]
        report.ignored["pos_embed[:, 0]"] = "the class token's position, which the model was built without"
    elif given and positions and given != positions:
        with_class = math.isqrt(given) ** 2 != given
        side = math.isqrt(given - with_class)
        raise CheckpointError(
            f"The checkpoint has {given} positions and the model {positions}. detectron2's ViT keeps the positions of "
            f"pretraining and resizes them as it runs: state pretrain_img_size={side} × patch_size and "
            f"pretrain_use_cls_token={with_class}."
        )
    return out


def _encoder(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """(the encoder's names without their prefix, all other names, the prefix)"""
    state = dict(state_dict)
    for wrapping in (*_DATA_PARALLEL, *_DATA_PARALLEL):
        state = strip_prefix(state, wrapping)
    prefix = next((p for p in _PREFIXES if p + _TIMM_STEM in state or p + _HF_STEM in state), "")
    encoder = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return encoder, {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}, prefix


def _recognise(encoder: Mapping[str, Tensor], outside: Mapping[str, Tensor], prefix: str) -> str:
    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in encoder)

    if _HF_STEM in encoder:
        return "hf_dinov2" if has(r".*layer_scale1\.lambda1$") or "embeddings.register_tokens" in encoder else "hf_vit"
    # DINOv3 and Sapiens 2 as released, which timm's Eva converts
    if _TIMM_STEM not in encoder or "storage_tokens" in encoder or has(r"rope_embed\."):
        return "other"
    if prefix == "base_encoder.":
        return "mocov3"
    if has(r"decoder_(embed|blocks|pos_embed)"):
        return "mae"
    if has(r"blocks\.\d+\.(attn\.rel_pos_[hw]$|residual\.)") or prefix == "backbone.net.":
        return "vitdet"
    layer_scale = has(r"blocks\.\d+\.(\d+\.)?ls1\.gamma$")
    if "register_tokens" in encoder or has(r"blocks\.\d+\.\d+\.") or ("mask_token" in encoder and layer_scale):
        return "dinov2"
    if "dist_token" in encoder or has(r"head_dist\."):
        return "deit"
    if any(re.match(r"head\.(mlp|last_layer)\.", name) for name in (*outside, *encoder)):
        return "dino"
    return _family_of_fixed_positions(encoder.get("pos_embed")) or "timm"


def _family_of_fixed_positions(positions: Tensor | None) -> str | None:
    """Whose fixed positions these are, of shape (1, 1 + side², dim); None if they were learned."""
    if positions is None or positions.ndim != 3 or positions.shape[2] % 4 or positions.shape[1] < 5:
        return None
    side, quarter = math.isqrt(positions.shape[1] - 1), positions.shape[2] // 4
    if side * side != positions.shape[1] - 1 or positions[0, 0].any():
        return None
    frequencies = 10000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, 2 · quarter)
    by_row = waves[:, None].expand(side, side, -1).flatten(0, 1)
    by_column = waves[None].expand(side, side, -1).flatten(0, 1)
    patches = positions[0, 1:].double()
    for family, halves in {"mae": (by_column, by_row), "mocov3": (by_row, by_column)}.items():
        if torch.allclose(patches, torch.cat(halves, dim=1), rtol=0, atol=2e-3):  # half precision is as near as 5e-4
            return family
    return None


def _rename(name: str, format: str) -> str:
    if format == "dinov2":
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # a chunk's blocks keep their number in the whole
        return re.sub(r"^(blocks\.\d+\.mlp)\.(w12|w3)\.", lambda m: f"{m[1]}.fc{1 if m[2] == 'w12' else 2}.", name)
    if not format.startswith("hf_"):
        return name
    for pattern, new in _HF_RENAMES.items():
        name, found = re.subn(f"^{pattern}", new, name)
        if found:
            break
    block = re.match(r"blocks\.\d+\.", name)
    if block:
        for pattern, new in _HF_BLOCK_RENAMES.items():
            inner, found = re.subn(f"^{pattern}", new, name[block.end() :])
            if found:
                return block[0] + inner
    return name


def _fuse(state: dict[str, Tensor], report: LoadReport) -> None:
    """Stacks what came in parts under the name of the whole; in place."""
    if not report.format.startswith("hf_"):
        return
    sources = {new: full for full, new in report.mapped.items()}
    for whole, parts in _FUSED.items():
        pattern = re.compile(rf"(blocks\.\d+\.)({'|'.join(map(re.escape, parts))})\.(weight|bias)$")
        found = {(m[1], m[3]): None for m in map(pattern.match, list(state)) if m}
        for block, kind in found:
            names = [f"{block}{part}.{kind}" for part in parts]
            lacking = [name for name in names if name not in state]
            if lacking:
                there = next(name for name in names if name in state)
                raise CheckpointError(
                    f"The checkpoint has '{sources[there]}' and nothing for {', '.join(lacking)}: it is not whole."
                )
            state[f"{block}{whole}.{kind}"] = torch.cat([state.pop(name) for name in names])
            for name in names:
                report.mapped[sources[name]] = f"{block}{whole}.{kind}"


def _fold_class_position(state: dict[str, Tensor], report: LoadReport) -> None:
    """timm's ViTs with registers have positions for patches only; the class token's is added to the token. In place."""
    positions = state["pos_embed"]
    state["cls_token"] = state["cls_token"] + positions[:, :1]
    state["pos_embed"] = positions[:, 1:]
    state["reg_token"] = state.pop("register_tokens")
    for full, new in report.mapped.items():
        if new == "register_tokens":
            report.mapped[full] = "reg_token"
