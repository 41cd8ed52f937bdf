"""Replaces modules that cannot be traced with dynamic sizes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from lift_det.layers.rel_pos_attention.sdpa import masked_attention
from lift_det.modeling import ViT
from lift_det.modeling.backbones.vit import Attention, Block, MapLinear
from lift_det.modeling.upsamplers.base import resize

M = TypeVar("M", bound=nn.Module)


def traceable(model: M) -> M:
    """Returns a copy of a model with the same outputs that can be traced for images of any size.

    It replaces the blocks and positions of :class:`lift_det.ViT`, the rotary positions of DINOv3, and LiFT's
    ``resize_image``, which is less exact in onnxruntime. The copy shares its weights with the model.

    Args:
        model: in evaluation mode; not modified.
    """
    tensors = (*model.parameters(), *model.buffers())
    model = copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})
    for module in list(model.modules()):
        if isinstance(module, Block):
            module.__class__ = _TraceableBlock
            module.attn.__class__ = _TraceableAttention
        elif isinstance(module, MapLinear):
            module.__class__ = nn.Linear
        elif isinstance(module, ViT) and module.pos_embed is not None:
            positions = module.pos_embed[:, int(module.pretrain_use_cls_token) :]
            module.patch_embed = _EmbeddingWithPositions(module.patch_embed, positions)
            module.pos_embed = None
        elif hasattr(module, "resize_image"):
            module.resize_image = _resize_exactly
        elif type(module) is RotaryEmbeddingDinoV3 and module.normalize_coords == "separate":
            module.__class__ = _TraceableRotaryEmbedding
    return model


class _TraceableBlock(Block):
    """A block that does not split the map."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.window_size)
        x = x + self.mlp(self.norm2(x))
        if self.use_residual_block:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class _TraceableAttention(Attention):
    """Attention with relative positions as a mask. Maps are always padded to windows, to avoid conditions on sizes."""

    def forward(self, x: Tensor, window_size: int = 0) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        batch, height, width, _ = x.shape
        if window_size:
            # torch.export cannot reason about -height // window_size
            down, across = (height + window_size - 1) // window_size, (width + window_size - 1) // window_size
            x = F.pad(x, (0, 0, 0, across * window_size - width, 0, down * window_size - height))
            # (B, down, window, across, window, C) → (B · down · across, window, window, C)
            x = x.unflatten(2, (across, window_size)).unflatten(1, (down, window_size)).transpose(2, 3).flatten(0, 2)
        grid = x.shape[1], x.shape[2]
        # (B', h · w, 3, heads, d) → three of (B', heads, h · w, d)
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.use_rel_pos:
            rows, columns = _vectors(self.rel_pos_h, grid[0]), _vectors(self.rel_pos_w, grid[1])
            x = masked_attention(q, k, v, rows, columns, self.scale)
        else:
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        # cloned, because the memory layout of attention's result differs between backends
        x = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        x = x.flatten(2).unflatten(1, grid)  # (B', h, w, C)
        if window_size:
            x = x.unflatten(0, (batch, down, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
            # torch.export would specialize a slice on whether the map was padded
            x = x.index_select(1, torch.arange(height, device=x.device))
            x = x.index_select(2, torch.arange(width, device=x.device))
        return self.proj(x)


def _vectors(table: Tensor, length: int) -> Tensor:
    """Interpolates relative positions for queries and keys of one length: (L, d) → (length, length, d)."""
    table = F.interpolate(table.t()[None], size=2 * length - 1, mode="linear")[0].t()
    places = torch.arange(length, device=table.device)
    return table[places[:, None] - places + (length - 1)]


class _EmbeddingWithPositions(nn.Module):
    """Patch embedding (N, h, w, C) plus positions (1, size², C), which are always interpolated."""

    def __init__(self, embedding: nn.Module, positions: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        size = round(positions.shape[1] ** 0.5)
        # contiguous, because torch.export.save does not support views of parameters
        positions = positions.detach().unflatten(1, (size, size)).permute(0, 3, 1, 2).contiguous()
        self.register_buffer("positions", positions)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embedding(images)
        size = patches.shape[1], patches.shape[2]
        positions = F.interpolate(self.positions, size=size, mode="bicubic", align_corners=False)
        return patches + positions.permute(0, 2, 3, 1)


class _TraceableRotaryEmbedding(RotaryEmbeddingDinoV3):
    """timm's rotary positions without converting sizes to float."""

    def _create_embed(self, feat_shape: Sequence[int], no_aug: bool = False) -> Tensor:
        axes = [(torch.arange(length) + 0.5 + self.grid_offset) / length for length in feat_shape]
        grid = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1)
        if self.grid_indexing == "xy":
            grid = grid.flip(-1)
        return torch.cat(self._get_pos_embed_from_coords((2 * grid - 1).flatten(0, 1)), dim=-1)  # (h · w, 2 · dim)


def _resize_exactly(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``resize`` with integer coordinates for enlarging, because onnxruntime's fp32 coordinates are inexact."""
    if images.shape[-2] >= size[0] or images.shape[-1] >= size[1]:
        return resize(images, size)
    for dim, length in zip((2, 3), size, strict=True):
        old = images.shape[dim]
        # centres of the new pixels in coordinates of the old pixels, in units of 1 / (2 · length)
        places = ((2 * torch.arange(length, device=images.device) + 1) * old - length).clamp(min=0)
        before = places // (2 * length)
        weight = ((places - before * (2 * length)) / (2 * length)).to(images.dtype)
        weight = weight[:, None] if dim == 2 else weight
        after = (before + 1).clamp(max=old - 1)
        first, second = images.index_select(dim, before), images.index_select(dim, after)
        images = first + (second - first) * weight
    return images
