"""detectron2's ViT under its own names, with fast attention and activation checkpointing that needs torch alone."""

from __future__ import annotations

import os
import re

import torch.utils.checkpoint
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import ViT as _ViT
from torch import Tensor, nn

from lift_det.checkpoint import (
    check_head_count,
    convert_to_detectron2,
    convert_vit,
    load_strictly,
    read_state_dict,
)

from .plain_vit import PlainViT, project
from .vit_block import Block

_REL_POS = re.compile(r".*\.rel_pos_[hw]$")


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

    def _blocks(self) -> nn.ModuleList:
        return self.blocks

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
