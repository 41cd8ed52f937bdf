"""Recognises the formats of ViT weights, and converts them to timm's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .files import CheckpointError, strip_prefix
from .report import LoadReport

_WRAPPERS = ("module.", "_orig_mod.")
# Prefixes of the ViT, after wrappers, in order of preference: teacher before student, and MoCo v3's trained encoder.
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
_TIMM_STEM = "patch_embed.proj.weight"
_HF_STEM = "embeddings.patch_embeddings.projection.weight"

# Tensors that a feature map does not need.
_IGNORED = {
    r"backbone\.(?!net\.)|(proposal_generator|roi_heads|sem_seg_head)\.|pixel_(mean|std)$": "the rest of a detector",
    r"((student|teacher)\.)?(dino|ibot)_head\.|head\.(mlp|last_layer|\d+)\.": "projection head",
    r"head(_dist)?\.|fc_norm\.|attn_pool\.|pooler\.|(\w+_)?classifier\.": "classifier",
    r"(embeddings\.)?mask_token$": "mask token",
    r"decoder[_.]": "decoder of pretraining",
    r"student\.|dino_loss\.|ibot_|momentum_encoder\.|predictor\.": "pretraining",
}
_HF_RENAMES = {
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"embeddings\.cls_token$": "cls_token",
    r"embeddings\.distillation_token$": "dist_token",
    r"embeddings\.register_tokens$": "register_tokens",
    r"embeddings\.position_embeddings$": "pos_embed",
    r"layernorm\.": "norm.",
    # "encoder.layer." in the hub's files, "layers." in transformers 5
    r"(encoder\.)?layers?\.(\d+)\.": r"blocks.\2.",
}
# The first alternative is the name in the hub's files, the second in transformers 5.
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
# One matrix in timm, and the matrices of transformers that it consists of, in order.
_FUSED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}


def recognise_vit(state_dict: Mapping[str, Tensor]) -> str:
    """Recognises the format of a ViT's weights by the names, and by the values of fixed position embeddings.

    * ``"dinov2"``: Meta's release, or a training checkpoint.
    * ``"dino"``: Meta's training checkpoint, with the projection head.
    * ``"mocov3"``: Meta's training checkpoint, or an encoder with MoCo v3's fixed position embeddings.
    * ``"mae"``: Meta's release with the decoder, or an encoder with MAE's fixed position embeddings.
    * ``"deit"``: a distilled DeiT.
    * ``"hf_vit"``: ViT, DeiT and ViTMAE of transformers.
    * ``"hf_dinov2"``: Dinov2 of transformers, with or without registers.
    * ``"vitdet"``: detectron2's ViT, alone or in a detector.
    * ``"timm"``: timm's VisionTransformer and Eva, and other encoders with the same names.
    * ``"other"``: all others. timm can convert some of them, such as OpenCLIP and DINOv3.
    """
    return _recognise(*_split(state_dict))


def convert_vit(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Converts a ViT's weights to timm's names.

    Prefixes such as ``module.`` and ``backbone.`` are removed. Tensors that a feature map does not need, such as
    classifiers and decoders, are left out. Nothing is resized. In the format ``"vitdet"`` the names remain those of
    detectron2, and in ``"other"`` those of the file.

    Returns:
        ``(state_dict, report)``, where the report has the ``format`` and the ``ignored`` names.

    Raises:
        CheckpointError: two names become the same, or one of query, key and value is missing.
    """
    encoder, outside, prefix = _split(state_dict)
    report = LoadReport(format=_recognise(encoder, outside, prefix))
    converted: dict[str, Tensor] = {}
    for name, tensor in (*encoder.items(), *outside.items()):
        reason = next((reason for pattern, reason in _IGNORED.items() if re.match(pattern, name)), None)
        if reason and report.format != "other":
            report.ignored[name] = reason
            continue
        new = _rename(name, report.format)
        if new in converted:
            raise CheckpointError(f"The checkpoint has '{new}' twice, once as '{name}'.")
        converted[new] = tensor
    if report.format.startswith("hf_"):
        _fuse(converted)
    if "register_tokens" in converted and {"cls_token", "pos_embed"} <= converted.keys():
        # with registers, timm has positions for patches only, and the class token includes its position
        positions = converted["pos_embed"]
        converted["cls_token"] = converted["cls_token"] + positions[:, :1]
        converted["pos_embed"] = positions[:, 1:]
        converted["reg_token"] = converted.pop("register_tokens")
    return converted, report


def check_head_count(format: str, embed_dim: int, num_heads: int) -> None:
    """Raises CheckpointError for MoCo v3's ViT-S with other than 12 heads; timm's has 6 and the same shapes."""
    if format == "mocov3" and embed_dim == 384 and num_heads != 12:
        raise CheckpointError(
            f"MoCo v3's ViT-S was trained with 12 heads, and the model has {num_heads}. The weights would load and "
            "give wrong features: set num_heads=12."
        )


def _split(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Returns the encoder without its prefix, all other tensors, and the prefix."""
    state = dict(state_dict)
    for wrapper in (*_WRAPPERS, *_WRAPPERS):
        state = strip_prefix(state, wrapper)
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
    has_layer_scale = has(r"blocks\.\d+\.(\d+\.)?ls1\.gamma$")
    if "register_tokens" in encoder or has(r"blocks\.\d+\.\d+\.") or ("mask_token" in encoder and has_layer_scale):
        return "dinov2"
    if "dist_token" in encoder or has(r"head_dist\."):
        return "deit"
    if any(re.match(r"head\.(mlp|last_layer)\.", name) for name in (*outside, *encoder)):
        return "dino"
    return _family_of_fixed_positions(encoder.get("pos_embed")) or "timm"


def _family_of_fixed_positions(positions: Tensor | None) -> str | None:
    """Recognises the sines and cosines of MAE (columns first) and MoCo v3 (rows first) in (1, 1 + side², dim)."""
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
        if torch.allclose(patches, torch.cat(halves, dim=1), rtol=0, atol=2e-3):  # half precision errs by 5e-4
            return family
    return None


def _rename(name: str, format: str) -> str:
    if format == "dinov2":
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # chunked blocks keep their numbers
        name = re.sub(r"^(blocks\.\d+\.mlp)\.w12\.", r"\1.fc1.", name)
        return re.sub(r"^(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2.", name)
    if not format.startswith("hf_"):
        return name
    name = _rename_first(name, _HF_RENAMES)
    block = re.match(r"blocks\.\d+\.", name)
    return block[0] + _rename_first(name[block.end() :], _HF_BLOCK_RENAMES) if block else name


def _rename_first(name: str, renames: Mapping[str, str]) -> str:
    for pattern, new in renames.items():
        renamed, found = re.subn(f"^{pattern}", new, name)
        if found:
            return renamed
    return name


def _fuse(state: dict[str, Tensor]) -> None:
    """Concatenates query, key and value, and the two halves of a SwiGLU, in place."""
    for whole, parts in _FUSED.items():
        pattern = re.compile(rf"(blocks\.\d+\.)({'|'.join(map(re.escape, parts))})\.(weight|bias)$")
        for block, kind in {(m[1], m[3]): None for m in map(pattern.match, list(state)) if m}:
            names = [f"{block}{part}.{kind}" for part in parts]
            missing = [name for name in names if name not in state]
            if missing:
                raise CheckpointError(f"The checkpoint lacks {', '.join(missing)} (names as in timm).")
            state[f"{block}{whole}.{kind}"] = torch.cat([state.pop(name) for name in names])
