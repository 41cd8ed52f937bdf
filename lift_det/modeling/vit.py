"""detectron2's ViT under its own names, with activation checkpointing that needs torch alone."""

from __future__ import annotations

import torch.utils.checkpoint
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import ViT as _ViT
from torch import Tensor


class ViT(_ViT):
    """The ViT of ViTDet (Li et al., arXiv 2203.16527): detectron2's, with its arguments, state dict and outputs.

    Upstream's ``use_act_checkpoint`` needs fairscale and renames the blocks' parameters; here it is torch's own
    checkpointing, and the names stay.
    """

    def __init__(self, *args, use_act_checkpoint: bool = False, **kwargs) -> None:
        """Takes what :class:`detectron2.modeling.ViT` takes."""
        super().__init__(*args, use_act_checkpoint=False, **kwargs)
        self.use_act_checkpoint = use_act_checkpoint
        self.patch_size: int = self.patch_embed.proj.kernel_size[0]
        self.depth = len(self.blocks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W), normalised; H and W multiples of the patch size.

        Returns:
            ``{out_feature: (N, embed_dim, H / patch_size, W / patch_size)}``, without a final norm.

        Raises:
            ValueError: sizes that are not whole patches.
        """
        if x.shape[-2] % self.patch_size or x.shape[-1] % self.patch_size:
            raise ValueError(
                f"The ViT has patches of {self.patch_size} pixels: it cannot take an image of "
                f"{x.shape[-2]}×{x.shape[-1]}. Pad it to a multiple (size_divisibility of the pyramid does)."
            )
        x = self.patch_embed(x)  # (N, h, w, C)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, (x.shape[1], x.shape[2]))
        for block in self.blocks:
            if self.use_act_checkpoint and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}
