# Mask R-CNN, frozen DINO ViT-S/16 with LiFT (fast).
from .mask_rcnn_lift_dino_vits16_frozen import dataloader, lr_multiplier, model, optimizer, train

model.backbone.input_scale = 0.5
