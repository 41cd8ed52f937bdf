# LiFT for DeiT (supervised on ImageNet-1k, Touvron et al., 2020), ViT-B/16.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "deit_base_patch16_224.fb_in1k"
train.output_dir = "./output/lift_deit_vitb16"
