"""Stand-ins for upsamplers of other projects."""

import torch.nn.functional as F
from torch import nn

from lift_det.modeling import FeatureUpsampler


class Nearest(FeatureUpsampler):
    """Nearest neighbour, scaled by the image's brightness; implements only ``forward``."""

    def forward(self, images, features, output_size=None):
        height, width = features.shape[-2:]
        size = output_size or (2 * height, 2 * width)
        guide = F.interpolate(images.mean(dim=1, keepdim=True), size=size, mode="bilinear", align_corners=False)
        return F.interpolate(features, size=size, mode="nearest") * (1 + 0.1 * guide)


class AnyUpLike(nn.Module):
    """Has the signature of AnyUp and JAFAR."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 1, kernel_size=1)

    def forward(self, image, features, output_size=None):
        guide = F.interpolate(self.mix(image), size=output_size, mode="bilinear", align_corners=False)
        return F.interpolate(features, size=output_size, mode="nearest") * (1 + 0.1 * guide)


class LoftUpLike(nn.Module):
    """Has the signature of LoftUp and FeatUp."""

    def forward(self, lr_feats, img):
        return F.interpolate(lr_feats, size=img.shape[-2:], mode="nearest") * (1 + 0.1 * img.mean(1, keepdim=True))
