# LiFT for DINO (Caron et al., 2021), ViT-S/8.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_small_patch8_224.dino"
train.output_dir = "./output/lift_dino_vits8"
