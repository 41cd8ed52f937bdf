"""detectron2's ViT under its own names, with activation checkpointing that needs torch alone."""

from __future__ import annotations

import torch.utils.checkpoint
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import ViT as _ViT
from torch import Tensor, nn


class ViT(_ViT):
    """The ViT of ViTDet (Li et al., arXiv 2203.16527): detectron2's, with its arguments, state dict and outputs.

    Upstream's ``use_act_checkpoint`` needs fairscale and renames the blocks' parameters; here it is torch's own
    checkpointing, and the names stay.
    """

    def __init__(self, *args, use_act_checkpoint: bool = False, conv_stem: bool = False, **kwargs) -> None:
        """Takes what :class:`detectron2.modeling.ViT` takes, and

        Args:
            use_act_checkpoint: recompute the blocks in the backward pass instead of keeping their activations.
            conv_stem: convolutions in place of the patch embedding (Xiao et al., arXiv 2106.14881). A ViT that is
                trained from scratch learns much sooner with them; pretrained weights do not fit.
        """
        super().__init__(*args, use_act_checkpoint=False, **kwargs)
        self.use_act_checkpoint = use_act_checkpoint
        projection = self.patch_embed.proj
        self.patch_size: int = projection.kernel_size[0]
        self.depth = len(self.blocks)
        if conv_stem:
            self.patch_embed = _ConvStem(projection.in_channels, projection.out_channels, self.patch_size)

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


class _ConvStem(nn.Sequential):
    """3×3 convolutions of stride 2 until a pixel is a patch, then 1×1; (N, 3, H, W) → (N, h, w, C)."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings:
            raise ValueError(
                f"A convolutional stem halves the image: patch_size has to be a power of two, not {patch_size}."
            )
        layers: list[nn.Module] = []
        for i in range(halvings):
            channels = max(embed_dim // 2 ** (halvings - 1 - i), 16)
            layers += [
                nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            in_channels = channels
        super().__init__(*layers, nn.Conv2d(in_channels, embed_dim, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 2, 3, 1)
