# LiFT for DINO (Caron et al., 2021), ViT-B/16.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_base_patch16_224.dino"
train.output_dir = "./output/lift_dino_vitb16"
