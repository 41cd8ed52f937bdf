# LiFT for DINO (Caron et al., 2021), ViT-B/8.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_base_patch8_224.dino"
train.output_dir = "./output/lift_dino_vitb8"
