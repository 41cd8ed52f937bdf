# LiFT for MoCo v3 (Chen et al., 2021), ViT-S/16.
# Expects the official release's vit-s-300ep.pth.tar in $LIFT_DET_WEIGHTS.
import os

from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_small_patch16_224"
model.net.num_heads = 12  # timm's ViT-S has 6, and the shapes are the same
model.net.pretrained = False
model.net.checkpoint = os.path.join(os.environ.get("LIFT_DET_WEIGHTS", "weights"), "vit-s-300ep.pth.tar")
model.pixel_mean = [123.675, 116.28, 103.53]  # timm's ViT of this name is another one, with other statistics
model.pixel_std = [58.395, 57.12, 57.375]
train.output_dir = "./output/lift_mocov3_vits16"
