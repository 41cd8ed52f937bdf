"""detectron2's ViT under its own names, with fast attention and activation checkpointing that needs torch alone."""

from __future__ import annotations

import os
import re

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from detectron2.modeling.backbone.utils import get_abs_pos, window_partition, window_unpartition
from detectron2.modeling.backbone.vit import Attention as _Attention
from detectron2.modeling.backbone.vit import Block as _Block
from detectron2.modeling.backbone.vit import ViT as _ViT
from torch import Tensor, nn

from lift_det.checkpoint import (
    check_head_count,
    convert_to_detectron2,
    convert_vit,
    load_strictly,
    read_state_dict,
)
from lift_det.layers import rel_pos_attention

from .base import PlainViT, project

_REL_POS = re.compile(r".*\.rel_pos_[hw]$")
# Tokens that the CPU takes through a block at a time, where they do not look at each other: their hidden layer of
# 4 × 768 channels is then 24 MiB, which stays below the size (32 MiB) from which malloc asks for new pages each time.
_CPU_TOKENS = 2048
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class ViT(PlainViT, _ViT):
    """The ViT of ViTDet (Li et al., arXiv 2203.16527): detectron2's, with its arguments, state dict and outputs.

    Attention goes through :func:`lift_det.layers.rel_pos_attention`, in windows too.
    Upstream's ``use_act_checkpoint`` needs fairscale and renames the blocks' parameters; here it is torch's own
    checkpointing, and the names stay.
    """

    def __init__(self, *args, use_act_checkpoint: bool = False, checkpoint: str | os.PathLike = "", **kwargs) -> None:
        """Takes what :class:`detectron2.modeling.ViT` takes, and a file of weights.

        Args:
            checkpoint: a local file with the weights of a plain ViT in any format that
                :func:`lift_det.checkpoint.convert_vit` knows: MAE's, timm's, detectron2's, bare or in a detector, ….
                Class token, last norm and heads are left out and reported. Relative positions that the file lacks keep
                their initialisation. Positions have to be of ``pretrain_img_size``, from which detectron2's ViT
                resizes them for each image (bicubically, without timm's antialiasing).

        Raises:
            CheckpointError: the checkpoint cannot be read or does not fit, or its ViT has what this one has not
                (LayerScale, registers, …): lift_det.TimmViT takes those.
        """
        super().__init__(*args, use_act_checkpoint=False, **kwargs)
        for block in self.blocks:
            Block.adopt(block)
        self.use_act_checkpoint = use_act_checkpoint
        self.patch_size: int = self.patch_embed.proj.kernel_size[0]
        self.embed_dim: int = self.patch_embed.proj.out_channels
        self.depth = len(self.blocks)
        self.num_heads: int = self.blocks[0].attn.num_heads
        self.weights_given = bool(checkpoint)
        if checkpoint:
            self._load(checkpoint)

    @property
    def description(self) -> str:
        """The sizes that its checkpoints have to agree with."""
        return (
            f"detectron2 ViT(embed_dim={self.embed_dim}, depth={self.depth}, num_heads={self.num_heads}, "
            f"patch_size={self.patch_size})"
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W), normalised; H and W multiples of the patch size.

        Returns:
            ``{out_feature: (N, embed_dim, H / patch_size, W / patch_size)}``, without a final norm.

        Raises:
            ValueError: sizes that are not whole patches.
        """
        return {self._out_features[0]: self.feature_map(x)}

    def feature_map(
        self, x: Tensor, layer: int | None = None, facet: str = "token", norm: bool | None = None
    ) -> Tensor:
        """See :meth:`PlainViT.feature_map`; there is no final norm."""
        layer, norm = self.resolve(layer, facet, norm)
        if x.shape[-2] % self.patch_size or x.shape[-1] % self.patch_size:
            raise ValueError(
                f"The ViT has patches of {self.patch_size} pixels: it cannot take an image of "
                f"{x.shape[-2]}×{x.shape[-1]}. Pad it to a multiple (size_divisibility of the pyramid does)."
            )
        x = self.patch_embed(x)  # (N, h, w, C)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, (x.shape[1], x.shape[2]))
        for index in range(layer + 1 if facet == "token" else layer):
            block = self.blocks[index]
            if self.use_act_checkpoint and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if facet != "token":
            x = project(self.blocks[layer], x, facet)
        return x.permute(0, 3, 1, 2)

    @property
    def transformer_blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.blocks

    @property
    def largest_window(self) -> int:
        """See :attr:`PlainViT.largest_window`."""
        return max((block.window_size for block in self.blocks), default=0)

    def _load(self, path: str | os.PathLike) -> None:
        state, report = convert_vit(read_state_dict(path)[0])
        check_head_count(report.format, self.embed_dim, self.num_heads)
        positions = 0 if self.pos_embed is None else self.pos_embed.shape[1]
        state = convert_to_detectron2(state, report, positions=positions)
        # ViTDet gives relative positions to ViTs that were pretrained without; a part of them would be a mistake
        has_rel_pos = any(_REL_POS.search(name) for name in state)
        load_strictly(
            self,
            state,
            str(path),
            ignore_missing=() if has_rel_pos else (_REL_POS.pattern,),
            conversion=report,
            hint=f"The model: {self.description}. Tables of relative positions are 2 × window_size - 1 long, or "
            "2 × img_size / patch_size - 1 where a block has no window.",
        )


class Attention(_Attention):
    """detectron2's, over :func:`lift_det.layers.rel_pos_attention`, in windows or over the whole map."""

    def forward(self, x: Tensor, window_size: int = 0) -> Tensor:
        """
        Args:
            x: (B, H, W, C).
            window_size: side of the windows within which tokens attend to each other; the last ones of a row or a
                column are filled with zeros, as upstream fills them. 0: the whole map is one window.

        Returns:
            (B, H, W, C)
        """
        height, width = x.shape[1:3]
        qkv = self.qkv(x)
        if window_size:
            qkv = self._fill_windows(qkv, window_size)
            qkv, padded_size = window_partition(qkv, window_size)  # (B · windows, window, window, 3C)
        grid = qkv.shape[1], qkv.shape[2]
        # (B', h · w, 3, heads, d) → three of (B', heads, h · w, d)
        q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.use_rel_pos:
            x = rel_pos_attention(q, k, v, self.rel_pos_h, self.rel_pos_w, grid, grid, self.scale)
        else:
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = x.transpose(1, 2).flatten(2).unflatten(1, grid)  # (B', h, w, C)
        if window_size:
            x = window_unpartition(x, window_size, padded_size, (height, width))
        return self.proj(x)

    def _fill_windows(self, qkv: Tensor, window_size: int) -> Tensor:
        """(B, H, W, 3C) → the same with whole windows, filled with what the projection makes of zeros: its bias.

        Upstream fills before the projection, which then is made of up to half as many tokens again.
        """
        batch, height, width, channels = qkv.shape
        if height % window_size == 0 and width % window_size == 0:
            return qkv
        # not -height % window_size, which inductor cannot reason about where sizes are symbols
        missing = (window_size - height % window_size) % window_size, (window_size - width % window_size) % window_size
        size = (batch, height + missing[0], width + missing[1], channels)
        bias = self.qkv.bias
        filled = qkv.new_zeros(size) if bias is None else bias.to(qkv.dtype).expand(size).clone()
        filled[:, :height, :width] = qkv
        return filled


class MapLinear(nn.Linear):
    """A linear layer that takes a map's pixels through a 1×1 convolution where that is quicker: on a CPU, in fp32.

    Torch gives convolutions to oneDNN and products in fp32 to MKL, the slower of them on AMD (docs/speed.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C'); other shapes go through the product."""
        convolve = _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4
        if not convolve or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        # a map with its channels side by side is a view, and so is what comes out
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


class Block(_Block):
    """detectron2's; see :meth:`adopt`."""

    @classmethod
    def adopt(cls, block: _Block) -> None:
        """Gives a block of upstream's these ways through it, in place.

        Upstream's ViT names its own classes in its constructor. What they hold and how it is initialised stays.
        """
        block.__class__ = cls
        block.attn.__class__ = Attention
        for module in block.modules():
            if type(module) is nn.Linear:
                module.__class__ = MapLinear

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not self.training:
            x = self._in_pieces(x)
        else:
            x = self._attend(x)
            x = x + self.drop_path(self._lean_mlp(self.norm2(x)))
        if self.use_residual_block:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x

    def _lean_mlp(self, x: Tensor) -> Tensor:
        """The MLP, keeping its hidden layer once for the backward and not behind the activation, too.

        That is a quarter of what a block keeps. The activation is computed again; checkpointing stops before fc2.
        """
        hidden = self.mlp.fc1(x)
        if not torch.is_grad_enabled():
            return self._behind_fc1(hidden)
        return torch.utils.checkpoint.checkpoint(self._behind_fc1, hidden, use_reentrant=False)

    def _behind_fc1(self, hidden: Tensor) -> Tensor:
        mlp = self.mlp
        return mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(mlp.act(hidden)))))

    def _in_pieces(self, x: Tensor) -> Tensor:
        """The same, a few rows of the map at a time as far as they do not need each other."""
        rows = max(1, _CPU_TOKENS // (x.shape[0] * x.shape[2]))
        if self.window_size:
            rows = max(1, rows // self.window_size) * self.window_size  # whole windows
            return torch.cat([self._add_mlp(self._attend(strip)) for strip in x.split(rows, dim=1)], dim=1)
        x = self._attend(x)
        for strip in x.split(rows, dim=1):
            self._add_mlp(strip)
        return x

    def _add_mlp(self, x: Tensor) -> Tensor:
        """In place."""
        return x.add_(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.attn(self.norm1(x), self.window_size))
