# LiFT for DeiT (supervised on ImageNet-1k, Touvron et al., 2020), ViT-S/16.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "deit_small_patch16_224.fb_in1k"
train.output_dir = "./output/lift_deit_vits16"
