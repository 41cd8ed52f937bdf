# LiFT for DINO (Caron et al., 2021), ViT-S/16.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_small_patch16_224.dino"
train.output_dir = "./output/lift_dino_vits16"
