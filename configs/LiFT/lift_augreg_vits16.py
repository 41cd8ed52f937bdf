# LiFT for a ViT-S/16 supervised on ImageNet-21k (AugReg, Steiner et al., 2021).
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_small_patch16_224.augreg_in21k"
train.output_dir = "./output/lift_augreg_vits16"
