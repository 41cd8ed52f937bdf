# LiFT for a ViT-B/16 supervised on ImageNet-21k (AugReg, Steiner et al., 2021).
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_base_patch16_224.augreg_in21k"
train.output_dir = "./output/lift_augreg_vitb16"
