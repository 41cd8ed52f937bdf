"""detectron2's ViT with faster attention and PyTorch's activation checkpointing."""

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

from lift_det.checkpoint import check_head_count, convert_vit, load_strictly, read_state_dict
from lift_det.layers import rel_pos_attention

from .base import PlainViT, project

_REL_POS = re.compile(r".*\.rel_pos_[hw]$")
# Tokens per piece in a block on the CPU. The hidden layer of 4 × 768 channels is then 24 MiB; from 32 MiB malloc asks
# for new pages each time.
_CPU_TOKENS = 2048
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class ViT(PlainViT, _ViT):
    """ViTDet's ViT (Li et al., arXiv 2203.16527), with the arguments, state dict and outputs of detectron2's.

    Attention uses :func:`lift_det.layers.rel_pos_attention`. ``use_act_checkpoint`` uses PyTorch's checkpointing;
    upstream's needs fairscale and renames the parameters.
    """

    def __init__(self, *args, use_act_checkpoint: bool = False, checkpoint: str | os.PathLike = "", **kwargs) -> None:
        """
        Args:
            checkpoint: a file of weights in any format of :func:`lift_det.checkpoint.recognise_vit`. Class token, final
                norm and heads are left out and reported. Relative positions keep their initialisation if the file has
                none. Position embeddings have to be of ``pretrain_img_size``, and are resized for each batch.
            args, kwargs: see :class:`detectron2.modeling.ViT`.

        Raises:
            CheckpointError: the checkpoint cannot be read or does not fit.
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
        return (
            f"detectron2 ViT(embed_dim={self.embed_dim}, depth={self.depth}, num_heads={self.num_heads}, "
            f"patch_size={self.patch_size})"
        )

    def feature_map(
        self, x: Tensor, layer: int | None = None, facet: str = "token", final_norm: bool | None = None
    ) -> Tensor:
        layer, final_norm = self.resolve(layer, facet, final_norm)
        self.grid_size(x)  # checks the size
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
        return self.blocks

    @property
    def largest_window(self) -> int:
        return max((block.window_size for block in self.blocks), default=0)

    def _load(self, path: str | os.PathLike) -> None:
        state, report = convert_vit(read_state_dict(path)[0])
        check_head_count(report.format, self.embed_dim, self.num_heads)
        for name in [name for name in state if name == "cls_token" or name.startswith("norm.")]:
            del state[name]
            report.ignored[name] = "not in detectron2's ViT"
        if self.pos_embed is not None and not self.pretrain_use_cls_token and "pos_embed" in state:
            if state["pos_embed"].shape[1] == self.pos_embed.shape[1] + 1:
                state["pos_embed"] = state["pos_embed"][:, 1:]
                report.ignored["pos_embed[:, 0]"] = "position of the class token"
        # all may be missing in a ViT that was pretrained without relative positions, but not some
        has_rel_pos = any(_REL_POS.fullmatch(name) for name in state)
        load_strictly(
            self,
            state,
            str(path),
            ignore_missing=() if has_rel_pos else (_REL_POS.pattern,),
            conversion=report,
            hint=f"The model: {self.description}. The length of pos_embed depends on pretrain_img_size and "
            "pretrain_use_cls_token, that of rel_pos tables on window_size and img_size. LayerScale, registers and "
            "distillation tokens need lift_det.TimmViT.",
        )


class Attention(_Attention):
    """detectron2's attention with :func:`lift_det.layers.rel_pos_attention`."""

    def forward(self, x: Tensor, window_size: int = 0) -> Tensor:
        """
        Args:
            x: (B, H, W, C).
            window_size: side of the windows, which are padded at the right and bottom; 0 for global attention.

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
        """Pads (B, H, W, 3C) to whole windows with the projection's bias, which equals projecting zeros."""
        batch, height, width, channels = qkv.shape
        if height % window_size == 0 and width % window_size == 0:
            return qkv
        # not -height % window_size, which inductor cannot reason about for symbolic sizes
        missing = (window_size - height % window_size) % window_size, (window_size - width % window_size) % window_size
        size = (batch, height + missing[0], width + missing[1], channels)
        bias = self.qkv.bias
        filled = qkv.new_zeros(size) if bias is None else bias.to(qkv.dtype).expand(size).clone()
        filled[:, :height, :width] = qkv
        return filled


class MapLinear(nn.Linear):
    """Linear layer that is computed as a 1×1 convolution for fp32 maps on the CPU.

    PyTorch computes convolutions with oneDNN, and matrix products with MKL, which is slower on AMD (docs/speed.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C'); other shapes use the matrix product."""
        convolve = _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4
        if not convolve or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        # both permutations are views
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


class Block(_Block):
    """detectron2's block, computed with less memory; created by :meth:`adopt`."""

    @classmethod
    def adopt(cls, block: _Block) -> None:
        """Converts a block of detectron2 in place, because detectron2's ViT creates its blocks itself."""
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
            x = x + self.drop_path(self._recomputed_mlp(self.norm2(x)))
        if self.use_residual_block:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x

    def _recomputed_mlp(self, x: Tensor) -> Tensor:
        """Computes the MLP. Recomputes its activation in the backward pass, to save a quarter of a block's memory."""
        hidden = self.mlp.fc1(x)
        if not torch.is_grad_enabled():
            return self._finish_mlp(hidden)
        return torch.utils.checkpoint.checkpoint(self._finish_mlp, hidden, use_reentrant=False)

    def _finish_mlp(self, hidden: Tensor) -> Tensor:
        mlp = self.mlp
        return mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(mlp.act(hidden)))))

    def _in_pieces(self, x: Tensor) -> Tensor:
        """Computes windowed attention and the MLP a few rows at a time."""
        rows = max(1, _CPU_TOKENS // (x.shape[0] * x.shape[2]))
        if self.window_size:
            rows = max(1, rows // self.window_size) * self.window_size  # whole windows
            return torch.cat([self._add_mlp(self._attend(strip)) for strip in x.split(rows, dim=1)], dim=1)
        x = self._attend(x)
        for strip in x.split(rows, dim=1):
            self._add_mlp(strip)
        return x

    def _add_mlp(self, x: Tensor) -> Tensor:
        """Adds the MLP in place."""
        return x.add_(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.attn(self.norm1(x), self.window_size))
