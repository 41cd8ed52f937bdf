# LiFT for DINOv2 with four registers (Darcet et al., 2024), ViT-B/14.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_base_patch14_reg4_dinov2.lvd142m"
train.output_dir = "./output/lift_dinov2_reg_vitb14"
