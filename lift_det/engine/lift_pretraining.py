"""LiFT's self-supervised training as a detectron2 model: images in, losses out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from lift_det.modeling.checked_loading import CheckedLoading
from lift_det.modeling.lift import LiFT, bilinear_2x, resize_images


class LiFTPretraining(CheckedLoading, nn.Module):
    """Trains LiFT to give the features of an image from those of the image at half size (section 3.1 of the paper).

    Full size is reconstructed from half, and half from quarter. The ViT is frozen and stays in evaluation mode. Its
    name here is ``backbone.net`` and LiFT's is ``backbone.lift``, as in a detector: a checkpoint of this model is an
    ``init_checkpoint`` of one.
    """

    def __init__(
        self,
        net: Backbone,
        lift: LiFT,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        in_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            net: the ViT.
            lift: what is trained.
            pixel_mean: of each channel on the 0 to 255 scale, in the order of the loader's images.
            pixel_std: likewise.
            in_feature: name of the ViT's map.
        """
        super().__init__()
        self.backbone = nn.ModuleDict({"net": net.requires_grad_(False), "lift": lift})
        self.in_feature = in_feature
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> LiFTPretraining:
        """The ViT stays in evaluation mode."""
        super().train(mode)
        self.backbone["net"].eval()
        return self

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict[str, float]]:
        """
        Args:
            batch: of dicts with ``"image"``, (3, H, W) on the 0 to 255 scale, all of one size:
                multiples of four patches.

        Returns:
            In training the losses, each one minus the mean cosine similarity. In evaluation, for each image, the cosine
            similarity to the features at full size of what LiFT makes of those at half size, and bilinear upsampling.

        Raises:
            ValueError: a size that is no multiple of four patches.
        """
        images = torch.stack([item["image"] for item in batch]).to(self.pixel_mean.device)
        images = (images - self.pixel_mean) / self.pixel_std  # (N, 3, H, W)
        lift = self.backbone["lift"]
        height, width = images.shape[-2:]
        if height % (4 * lift.patch_size) or width % (4 * lift.patch_size):
            raise ValueError(
                f"Images of {height}×{width} pixels cannot be quartered into patches of {lift.patch_size}: "
                f"choose multiples of {4 * lift.patch_size}."
            )
        half = resize_images(images, (height // 2, width // 2))
        full_features, half_features = self._features(images), self._features(half)
        lifted = lift(half, half_features)
        if self.training:
            quarter = resize_images(images, (height // 4, width // 4))
            lifted_quarter = lift(quarter, self._features(quarter))
            return {
                "loss_full_from_half": 1 - _cosine(lifted, full_features).mean(),
                "loss_half_from_quarter": 1 - _cosine(lifted_quarter, half_features).mean(),
            }
        scores = {
            "lift": _cosine(lifted, full_features),
            "bilinear": _cosine(bilinear_2x(half_features), full_features),
        }
        return [{name: score[i].item() for name, score in scores.items()} for i in range(len(batch))]

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return self.backbone["net"](images)[self.in_feature]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N, C, h, w) twice → (N,), the cosine similarity of the channels, averaged over positions."""
    return F.cosine_similarity(a, b, dim=1).mean(dim=(1, 2))
