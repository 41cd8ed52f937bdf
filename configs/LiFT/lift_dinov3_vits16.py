# LiFT for DINOv3 (Siméoni et al., 2025), ViT-S/16.
# The weights need the licence accepted on the hub.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_small_patch16_dinov3.lvd1689m"
train.output_dir = "./output/lift_dinov3_vits16"
