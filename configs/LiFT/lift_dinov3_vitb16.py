# LiFT for DINOv3 (Siméoni et al., 2025), ViT-B/16.
# The weights need the licence accepted on the hub.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_base_patch16_dinov3.lvd1689m"
train.output_dir = "./output/lift_dinov3_vitb16"
