# LiFT for DINOv2 (Oquab et al., 2023), ViT-L/14.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_large_patch14_dinov2.lvd142m"
train.output_dir = "./output/lift_dinov2_vitl14"
