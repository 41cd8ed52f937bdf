# Supervised on ImageNet-21k (Steiner et al., "How to train your ViT?", 2021), ViT-B/16.
from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net.name = "vit_base_patch16_224.augreg_in21k"
train.output_dir = "./output/lift_augreg_vitb16"
