"""timm's plain ViTs (DINO, DINOv2, DINOv3, CLIP, SigLIP, DeiT, EVA-02, …) as detectron2 backbones."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
from collections.abc import Sequence

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_activations

from lift_det.checkpoint import CheckpointError, check_head_count, convert_vit, load_strictly, read_state_dict

from .base import PlainViT, project

logger = logging.getLogger(f"detectron2.{__name__}")

# Parts that a feature map does not need.
_HEAD = (r"head(_dist)?\.", r"fc_norm\.", r"attn_pool\.")
# Arguments that do not change what a trained model computes; positions are resized to any grid.
_NOT_THE_NETWORK = re.compile(r"img_size|.*drop_rate|weight_init|cache_dir|pretrained_.*")


class TimmViT(PlainViT):
    """A ViT of timm as a detectron2 backbone.

    State-dict names are timm's with the prefix ``vit.``. Absolute position embeddings are interpolated, and rotary ones
    computed, for the size of each batch.

    Attributes:
        vit: the timm model without its head.
        num_prefix_tokens: number of class and register tokens, which are not part of the feature map.

    Args:
        name: timm's name of the model, such as ``"vit_small_patch14_dinov2.lvd142m"``.
        pretrained: download timm's weights from the Hugging Face hub.
        checkpoint: a file of weights in any format of :func:`lift_det.checkpoint.recognise_vit`, or that timm converts.
            It has to fit the model. Heads and decoders are left out and reported, position embeddings are resized as in
            timm, and half precision is converted to float32.
        ignore_unexpected: regular expressions (``re.match``) of further names to leave out. LayerScale is never left
            out.
        final_norm: keep the last LayerNorm, as usual for frozen features, or remove it, as in ViTDet. Models that only
            normalise the pooled vector (``fc_norm``) have none.
        use_act_checkpoint: recompute the blocks in the backward pass to save memory.
        drop_path_rate: stochastic depth rate of the last block; rises linearly from 0 in the first.
        out_feature: name of the feature map in the output.
        model_kwargs: arguments for timm, such as ``img_size``, ``depth`` or ``num_heads``.

    Raises:
        ValueError: not a plain ViT, an unknown name, or arguments that exclude each other.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        checkpoint: str | os.PathLike = "",
        *,
        ignore_unexpected: Sequence[str] = (),
        final_norm: bool = True,
        use_act_checkpoint: bool = False,
        drop_path_rate: float = 0.0,
        out_feature: str = "last_feat",
        **model_kwargs: object,
    ) -> None:
        super().__init__()
        if pretrained and checkpoint:
            raise ValueError(f"Either pretrained=True or checkpoint='{checkpoint}', not both.")
        plain_vit_without_weights(name)  # checks the name
        vit = timm.create_model(
            name, pretrained, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path_rate, **model_kwargs
        )
        height, width = vit.patch_embed.patch_size
        if height != width:
            raise ValueError(f"'{name}' has patches of {height}×{width} pixels; they have to be square.")
        self._name = name
        self._model_kwargs = {
            key: value
            for key, value in sorted(model_kwargs.items())
            if value is not None and not _NOT_THE_NETWORK.fullmatch(key)
        }
        self.weights_given = bool(pretrained or checkpoint)
        self.patch_size = height
        self.embed_dim = vit.embed_dim
        self.depth = len(vit.blocks)
        self.num_heads = next(m.num_heads for m in vit.blocks.modules() if hasattr(m, "num_heads"))
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        statistics = resolve_model_data_config(vit)
        self.pixel_mean = tuple(255.0 * value for value in statistics["mean"])
        self.pixel_std = tuple(255.0 * value for value in statistics["std"])
        self.use_act_checkpoint = use_act_checkpoint

        if final_norm and isinstance(vit.norm, nn.Identity):
            logger.warning("'%s' has no LayerNorm over its tokens: final_norm=True has no effect.", name)
        # after timm has loaded its weights, which have a head; DDP refuses parameters without gradients
        vit.prune_intermediate_layers(1, prune_norm=not final_norm, prune_head=True)
        self.vit = vit
        if checkpoint:
            self._load(name, checkpoint, ignore_unexpected if final_norm else (*ignore_unexpected, r"norm\."))

        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: self.embed_dim}
        self._out_feature_strides = {out_feature: self.patch_size}

    @property
    def size_divisibility(self) -> int:
        """Images have to be padded to multiples of the patch size."""
        return self.patch_size

    @property
    def has_final_norm(self) -> bool:
        return not isinstance(self.vit.norm, nn.Identity)

    @property
    def description(self) -> str:
        # the repr of a class or function contains an address
        changes = (f"{key}={getattr(value, '__name__', value)}" for key, value in self._model_kwargs.items())
        return " ".join([self._name, *changes])

    def feature_map(
        self, x: Tensor, layer: int | None = None, facet: str = "token", final_norm: bool | None = None
    ) -> Tensor:
        layer, final_norm = self.resolve(layer, facet, final_norm)
        grid = self.grid_size(x)
        embedded = self.vit._pos_embed(self.vit.patch_embed(x))
        # Eva adds its rotary embeddings: (HW, D), or (depth, heads, HW, D) if they are learned
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        tokens = self.vit.norm_pre(tokens)  # (N, prefix + HW, C)
        for index in range(layer + 1 if facet == "token" else layer):
            options = {}
            if rope is not None:
                options["rope"] = rope[index] if self.vit.rope_mixed else rope
            block = self.vit.blocks[index]
            if self.use_act_checkpoint and self.training:
                tokens = checkpoint_activations(block, tokens, use_reentrant=False, **options)
            else:
                tokens = block(tokens, **options)
        if facet != "token":
            tokens = project(self.vit.blocks[layer], tokens, facet)
        elif final_norm:
            tokens = self.vit.norm(tokens)
        patches = tokens[:, self.num_prefix_tokens :]  # (N, HW, C)
        return patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()

    @property
    def transformer_blocks(self) -> nn.ModuleList:
        return self.vit.blocks

    def _load(self, name: str, path: str | os.PathLike, ignore: Sequence[str]) -> None:
        state, report = convert_vit(read_state_dict(path)[0])
        state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        if report.format == "vitdet":
            raise CheckpointError(f"'{path}' is a detectron2 ViT, whose blocks differ from timm's: use lift_det.ViT.")
        check_head_count(report.format, self.embed_dim, self.num_heads)
        # timm would resize another patch embedding, which gives wrong features
        patch = next((tuple(value.shape[-2:]) for value in state.values() if value.ndim == 4), None)
        if patch not in (None, (self.patch_size, self.patch_size)):
            raise CheckpointError(
                f"'{path}' was trained on patches of {patch[0]}×{patch[1]} pixels, '{name}' has "
                f"{self.patch_size}×{self.patch_size}. Use the timm name and patch_size of the checkpoint's ViT."
            )
        if isinstance(self.vit, Eva):
            convert = eva.checkpoint_filter_fn
        else:
            convert = functools.partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
        hint = f"Use the timm name and arguments (depth, patch_size, …) of the checkpoint's ViT, not '{name}'."
        try:
            converted = convert(dict(state), self.vit)
        except (RuntimeError, AssertionError, KeyError) as error:  # mostly position embeddings of no square grid
            raise CheckpointError(f"'{path}' cannot be converted to timm's names and sizes: {error}\n{hint}") from error
        before, after = state.get("pos_embed"), converted.get("pos_embed")
        if before is not None and after is not None and before is not after:
            report.resized["pos_embed"] = (tuple(before.shape), tuple(after.shape))
        kept = {id(value) for value in converted.values()}
        for key, value in state.items():
            if key not in converted and id(value) not in kept:
                report.ignored[key] = "dropped or rewritten by timm's conversion"
        if report.format == "other":
            ignore = (*_HEAD, *ignore)
        load_strictly(self.vit, converted, str(path), ignore_unexpected=ignore, conversion=report, hint=hint)


@functools.lru_cache
def plain_vit_without_weights(name: str) -> VisionTransformer | Eva:
    """Builds a timm model on the meta device, without allocating or downloading anything.

    Raises:
        ValueError: timm has no such model, or :class:`TimmViT` does not support it.
    """
    if ":" not in name and not timm.is_model(name):  # timm checks names with a source, such as 'hf-hub:…'
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(f"timm {timm.__version__} has no model '{name}'. Similar names: {', '.join(close) or 'none'}.")
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except RuntimeError as error:
        raise ValueError(f"timm cannot build '{name}': {error}") from error
    if not isinstance(model, (VisionTransformer, Eva)) or type(model.patch_embed) is not PatchEmbed:
        stem = type(getattr(model, "patch_embed", None)).__name__
        raise ValueError(
            f"'{name}' is a timm {type(model).__name__} with a {stem}. TimmViT supports plain ViTs: timm's "
            "VisionTransformer (ViT, DeiT, DINO, DINOv2, CLIP, SigLIP) and Eva (EVA-02, DINOv3) with one convolution "
            "that cuts the image into patches."
        )
    return model
