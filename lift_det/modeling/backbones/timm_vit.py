"""Any plain ViT of timm (DINO, DINOv2, DINOv3, CLIP, SigLIP, DeiT, EVA-02, supervised, …) as a detectron2 backbone."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
from collections.abc import Mapping, Sequence

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

__all__ = ["TimmViT"]

# What a feature map never passes through: it may be left over in a checkpoint.
_HEAD = (r"head(_dist)?\.", r"fc_norm\.", r"attn_pool\.")
# What a model is built with and computes the same without, once it is trained; positions are resized to any grid.
_NOT_THE_NETWORK = re.compile(r"img_size|.*drop_rate|weight_init|cache_dir|pretrained_.*")


class TimmViT(PlainViT):
    """A timm ViT that gives its last feature map: (N, 3, H, W) images to ``{out_feature: (N, embed_dim, H/p, W/p)}``.

    The timm model is ``self.vit``, unchanged but for its head, which is taken off; state-dict names are timm's behind
    ``vit.``. Absolute positions are interpolated and rotary ones computed for the size of each batch.

    **Windows.** Blocks in ``window_block_indexes`` attend within windows of ``window_size`` × ``window_size`` patches.
    Where the grid is no multiple of the window, the windows at the right and bottom are smaller. ViTDet pads them, and
    lets patches attend to the padding; smaller windows need no mask, waste nothing, and make a window as large as the
    grid the same as global attention. Prefix tokens (class, distillation, registers) go into every window as a copy,
    because a pretrained block wants them among its keys; behind the block the copies are averaged, each weighted by the
    patches of its window. Rotary embeddings are cut as the patches are. Stochastic depth in a windowed block drops
    single windows, where ViTDet's drops images.

    Attributes:
        vit: the timm model.
        patch_size, embed_dim, depth, num_heads: as the model has them; the patch size, in pixels, is the stride.
        weights_given: whether it was built with ``pretrained`` or ``checkpoint``.
        num_prefix_tokens: tokens before the patches, which are not in the map.
        pixel_mean, pixel_std: three floats, RGB, 0 to 255: the statistics of the images that the weights were trained
            on. Give them to the detector (``model.pixel_mean``) and read the images with ``input_format="RGB"``.

    Args:
        name: timm's name of the model, such as ``"vit_small_patch14_dinov2.lvd142m"``.
        pretrained: take timm's own weights, from the Hugging Face hub.
        checkpoint: a local file of weights (see :func:`lift_det.checkpoint.read_state_dict`), which has to fit the
            model. Its format is recognised by its names: timm's, the releases of DINO, DINOv2, MoCo v3, MAE and DeiT,
            transformers' ViT, DeiT, ViTMAE and Dinov2 (:func:`lift_det.checkpoint.recognise_vit`), and what timm itself
            converts (OpenCLIP, DINOv3, …). Classifiers, projection heads, decoders and the like are left out and
            reported. Positions of another grid are resized as timm does it, bicubically with antialiasing, prefix
            tokens' as they are; half precision becomes float32.
        allow_unexpected: regular expressions, matched from the start, of further names that may be left over in the
            checkpoint, as an error states them. LayerScale is never left out.
        norm: give the map behind the last LayerNorm, as frozen features are used, or before it, as in ViTDet.
            With False it is removed, because DistributedDataParallel refuses parameters without gradients.
            Models that normalise only the pooled vector (``fc_norm``) have none; timm's map is then the same for both.
        window_size: side of a window, in patches; 0 for none.
        window_block_indexes: blocks, counted from 0, that attend within windows.
        use_act_checkpoint: recompute the blocks in the backward pass, to save memory; only in training.
        drop_path_rate: stochastic depth of the last block; the others' rise to it linearly.
        out_feature: the map's name.
        **model_kwargs: go to timm, over what the name stands for: ``img_size``, ``depth``, … MoCo v3's ViT-S needs
            ``num_heads=12``; timm's has 6, and the shapes are the same. ``None`` leaves a value as the name has it: a
            DINOv2 without LayerScale is ``init_values=0``.

    Raises:
        ValueError: not a plain ViT, an unknown name, or arguments that contradict each other.
        CheckpointError: the checkpoint cannot be read, or does not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        checkpoint: str | os.PathLike = "",
        *,
        allow_unexpected: Sequence[str] = (),
        norm: bool = True,
        window_size: int = 0,
        window_block_indexes: Sequence[int] = (),
        use_act_checkpoint: bool = False,
        drop_path_rate: float = 0.0,
        out_feature: str = "last_feat",
        **model_kwargs: object,
    ) -> None:
        super().__init__()
        self._name = name
        self._model_kwargs = {
            key: value
            for key, value in sorted(model_kwargs.items())
            if value is not None and not _NOT_THE_NETWORK.fullmatch(key)
        }
        self.weights_given = bool(pretrained or checkpoint)
        if pretrained and checkpoint:
            raise ValueError(f"Either pretrained=True or checkpoint='{checkpoint}', not both: which weights are meant?")
        for kwarg in ("num_classes", "dynamic_img_size", "checkpoint_path", "features_only"):
            if kwarg in model_kwargs:
                raise ValueError(f"TimmViT sets timm's '{kwarg}' itself: leave it out.")
        if model_kwargs.get("patch_drop_rate"):
            raise ValueError("patch_drop_rate drops patches in training: what is left is no map. Use drop_path_rate.")
        _check_name(name)
        check_plain_vit(name)
        vit = timm.create_model(
            name, pretrained, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path_rate, **model_kwargs
        )
        self.patch_size: int = _square_patch_size(name, vit)
        self.embed_dim: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        self.num_heads: int = next(m.num_heads for m in vit.blocks.modules() if hasattr(m, "num_heads"))
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        statistics = resolve_model_data_config(vit)
        self.pixel_mean: tuple[float, ...] = tuple(255.0 * value for value in statistics["mean"])
        self.pixel_std: tuple[float, ...] = tuple(255.0 * value for value in statistics["std"])

        self.window_size = window_size
        self.window_block_indexes = tuple(window_block_indexes)
        self._check_windows()
        self.use_act_checkpoint = use_act_checkpoint

        if norm and isinstance(vit.norm, nn.Identity):
            logger.warning("'%s' has no LayerNorm over its tokens: norm=True changes nothing.", name)
        # behind the loading of timm's weights, which come with a head, and before that of a checkpoint, which need not
        vit.prune_intermediate_layers(1, prune_norm=not norm, prune_head=True)
        self.vit = vit
        if checkpoint:
            self._load(name, checkpoint, ignore=allow_unexpected if norm else (*allow_unexpected, r"norm\."))

        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: self.embed_dim}
        self._out_feature_strides = {out_feature: self.patch_size}

    @property
    def size_divisibility(self) -> int:
        """Images have to be padded to whole patches."""
        return self.patch_size

    @property
    def has_norm(self) -> bool:
        """Whether there is a norm behind the last block."""
        return not isinstance(self.vit.norm, nn.Identity)

    @property
    def description(self) -> str:
        """timm's name, and the keyword arguments that make another network of it."""
        # classes and functions by their name: their repr has an address in it
        changes = (f"{key}={getattr(value, '__name__', value)}" for key, value in self._model_kwargs.items())
        return " ".join([self._name, *changes])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes the feature map.

        Args:
            x: (N, 3, H, W) images, normalised with ``pixel_mean`` and ``pixel_std``; H and W multiples of the patch.

        Returns:
            ``{out_feature: (N, embed_dim, H / patch_size, W / patch_size)}``, contiguous.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        return {self._out_features[0]: self.feature_map(x)}

    def feature_map(
        self, x: Tensor, layer: int | None = None, facet: str = "token", norm: bool | None = None
    ) -> Tensor:
        """See :meth:`PlainViT.feature_map`; the map is contiguous."""
        layer, norm = self.resolve(layer, facet, norm)
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Images of {height}×{width} pixels are not whole patches of {self.patch_size}×{self.patch_size}: pad "
                f"them to multiples of {self.patch_size} (TimmViT.size_divisibility)."
            )
        grid = (height // self.patch_size, width // self.patch_size)
        # timm's own steps, one by one, because none of its public forwards lets a block see anything but the whole grid
        embedded = self.vit._pos_embed(self.vit.patch_embed(x))
        # Eva gives its rotary embeddings beside the tokens: (HW, D), or (depth, heads, HW, D) where they are learned
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        rope_for_each_block = rope is not None and self.vit.rope_mixed
        tokens = self.vit.norm_pre(tokens)  # (N, prefix + HW, C)
        for index in range(layer + 1 if facet == "token" else layer):
            block = self.vit.blocks[index]
            run = functools.partial(_run_block, block)
            if index in self.window_block_indexes:
                run = functools.partial(
                    _run_in_windows, block, grid=grid, window_size=self.window_size, num_prefix=self.num_prefix_tokens
                )
            if self.use_act_checkpoint and self.training:
                run = functools.partial(checkpoint_activations, run, use_reentrant=False)
            tokens = run(tokens, rope[index] if rope_for_each_block else rope)
        if facet != "token":
            tokens = project(self.vit.blocks[layer], tokens, facet)
        elif norm:
            tokens = self.vit.norm(tokens)
        patches = tokens[:, self.num_prefix_tokens :]  # (N, HW, C)
        return patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()

    @property
    def transformer_blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.vit.blocks

    @property
    def fixed_size_reason(self) -> str:
        """See :attr:`PlainViT.fixed_size_reason`."""
        if not self.window_size:
            return ""
        return (
            "A TimmViT with windows cuts them smaller at the right and the bottom, and how many kinds of them there "
            "are depends on the size"
        )

    def _check_windows(self) -> None:
        if self.window_size < 0 or bool(self.window_size) != bool(self.window_block_indexes):
            raise ValueError(
                "Windows need both a size in patches and the blocks that use them: got "
                f"window_size={self.window_size} and window_block_indexes={list(self.window_block_indexes)}."
            )
        outside = [index for index in self.window_block_indexes if not 0 <= index < self.depth]
        if outside:
            raise ValueError(
                f"window_block_indexes {outside} are not blocks: the model has {self.depth}, 0 to {self.depth - 1}."
            )

    def _load(self, name: str, path: str | os.PathLike, ignore: Sequence[str]) -> None:
        state, report = convert_vit(read_state_dict(path)[0])
        state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        hint = (
            f"'{name}' as built here: {_describe(self.vit.state_dict())}.\n"
            f"'{path}': {_describe(state)}.\n"
            "Use the timm name and the model kwargs (depth, patch_size, …) of the ViT that the checkpoint belongs to."
        )
        if report.format == "vitdet":
            raise CheckpointError(
                f"'{path}' is a detectron2 ViT, which has other blocks than timm's: use lift_det.ViT.\n{hint}"
            )
        check_head_count(report.format, self.embed_dim, self.num_heads)
        # A plain ViT has one convolution, the patch embedding. timm would resize it to another patch size: the weights
        # would load, and give features that nobody trained.
        patch = next((tuple(value.shape[-2:]) for value in state.values() if value.ndim == 4), None)
        if patch not in (None, (self.patch_size, self.patch_size)):
            raise CheckpointError(
                f"'{path}' was trained on patches of {patch[0]}×{patch[1]} pixels, '{name}' has "
                f"{self.patch_size}×{self.patch_size}.\n{hint}"
            )
        convert = (
            eva.checkpoint_filter_fn
            if isinstance(self.vit, Eva)
            else functools.partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
        )
        try:
            converted = convert(dict(state), self.vit)
        except (RuntimeError, AssertionError, KeyError) as error:
            # most often positions that are no square grid once the model's prefix tokens are taken off
            raise CheckpointError(f"'{path}' cannot be converted to timm's names and sizes: {error}\n{hint}") from error
        before, after = state.get("pos_embed"), converted.get("pos_embed")
        if before is not None and after is not None and before is not after:
            report.resized["pos_embed"] = (tuple(before.shape), tuple(after.shape))
        kept = {id(value) for value in converted.values()}
        for key, value in state.items():
            if key not in converted and id(value) not in kept:
                report.ignore(key, "dropped or rewritten by timm's own conversion")
        if report.format in ("timm", "other"):  # of the rest, what may be left over is known and out by now
            ignore = (*_HEAD, *ignore)
        load_strictly(self.vit, converted, str(path), ignore_unexpected=ignore, conversion=report, hint=hint)


def _run_block(block: nn.Module, tokens: Tensor, rope: Tensor | None) -> Tensor:
    """Runs a block on (B, L, C) tokens; rope broadcasts against (B, heads, L - prefix, D)."""
    return block(tokens) if rope is None else block(tokens, rope=rope)


def _run_in_windows(
    block: nn.Module, tokens: Tensor, rope: Tensor | None, *, grid: tuple[int, int], window_size: int, num_prefix: int
) -> Tensor:
    """Runs a block within windows of at most window_size × window_size patches (see TimmViT).

    Args:
        tokens: (N, prefix + HW, C); rope: (HW, D), (heads, HW, D) or None; grid: (H, W).

    Returns:
        (N, prefix + HW, C)
    """
    batch = tokens.shape[0]
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:].unflatten(1, grid)  # (N, P, C), (N, H, W, C)
    if rope is not None:
        rope = rope.expand(1, -1, -1) if rope.ndim == 2 else rope  # (1 or heads, HW, D)
        rope = rope.unflatten(1, grid)  # (1 or heads, H, W, D)
    prefix_mean: Tensor | float = 0.0
    rows = []
    for top, bottom, h in _spans(grid[0], window_size):
        row = []
        for left, right, w in _spans(grid[1], window_size):
            windows = _cut(patches[:, top:bottom, left:right], h, w)  # (N, n, hw, C)
            count = windows.shape[1]
            windows = torch.cat([prefix[:, None].expand(-1, count, -1, -1), windows], dim=2).flatten(0, 1)
            window_rope = None
            if rope is not None:
                window_rope = _cut(rope[:, top:bottom, left:right], h, w).transpose(0, 1)  # (n, 1 or heads, hw, D)
                window_rope = window_rope.repeat(batch, 1, 1, 1)  # images outermost, as in windows
            windows = _run_block(block, windows, window_rope).unflatten(0, (batch, count))  # (N, n, P + hw, C)
            prefix_mean = prefix_mean + windows[:, :, :num_prefix].sum(dim=1) * (h * w / (grid[0] * grid[1]))
            row.append(_join(windows[:, :, num_prefix:], (bottom - top) // h, h, w))
        rows.append(torch.cat(row, dim=2))
    return torch.cat([prefix_mean, torch.cat(rows, dim=1).flatten(1, 2)], dim=1)


def _spans(length: int, window: int) -> list[tuple[int, int, int]]:
    """Cuts 0..length into (start, end, size of the windows within): the whole windows, then what is left over."""
    whole = length - length % window
    return [span for span in ((0, whole, window), (whole, length, length - whole)) if span[0] < span[1]]


def _cut(x: Tensor, h: int, w: int) -> Tensor:
    """(N, A·h, B·w, C) to (N, A·B, h·w, C)"""
    return x.unflatten(2, (-1, w)).unflatten(1, (-1, h)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _join(x: Tensor, rows: int, h: int, w: int) -> Tensor:
    """(N, rows·B, h·w, C) to (N, rows·h, B·w, C): undoes _cut."""
    return x.unflatten(2, (h, w)).unflatten(1, (rows, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _check_name(name: str) -> None:
    """Refuses what timm does not know; names with a source, such as 'hf-hub:…', are left to timm."""
    if ":" in name:
        return
    architecture = name.split(".")[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f"timm {timm.__version__} has no model '{name}'. Close to it: {', '.join(close) or 'nothing'}."
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        raise ValueError(f"{error} Weights of '{architecture}': {', '.join(tagged) or 'none'}.") from error


@functools.lru_cache
def check_plain_vit(name: str) -> None:
    """Raises ValueError where timm's model of this name is not one that :class:`TimmViT` takes."""
    # on the meta device nothing is allocated or downloaded: the class is known before anything else is asked of it
    with torch.device("meta"):
        model = timm.create_model(name)
    if not isinstance(model, (VisionTransformer, Eva)):
        raise ValueError(
            f"'{name}' is a timm {type(model).__name__}, which is not supported: TimmViT takes plain ViTs, timm's "
            "VisionTransformer (ViT, DeiT, DINO, DINOv2, CLIP, SigLIP, …) and Eva (EVA-02, DINOv3, …)."
        )
    if type(model.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"'{name}' has a {type(model.patch_embed).__name__} before its blocks, which is not supported: TimmViT "
            "takes plain ViTs, which cut the image into patches with one convolution."
        )


def _square_patch_size(name: str, vit: VisionTransformer | Eva) -> int:
    height, width = vit.patch_embed.patch_size
    if height != width:
        raise ValueError(
            f"'{name}' has patches of {height}×{width} pixels; detectron2 knows one stride, so they have to be square."
        )
    return height


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _describe(state: Mapping[str, Tensor]) -> str:
    """The sizes that tell one ViT from another, read from a state dict with timm's names."""
    blocks = {int(found[1]) for found in (re.search(r"(?:^|\.)blocks\.(\d+)\.", key) for key in state) if found}
    facts = [f"{max(blocks) + 1 if blocks else 0} blocks"]
    facts += [f"{key} {_shape(state[key])}" for key in ("patch_embed.proj.weight", "pos_embed") if key in state]
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    layer_scale = any(re.search(r"\.(ls1\.gamma|gamma_1)$", key) for key in state)
    return ", ".join([*facts, f"{registers} registers", f"{'with' if layer_scale else 'without'} LayerScale"])
