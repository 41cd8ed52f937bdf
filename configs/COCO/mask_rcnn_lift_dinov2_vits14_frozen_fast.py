# Mask R-CNN, frozen DINOv2 ViT-S/14 with LiFT (fast).
from .mask_rcnn_lift_dinov2_vits14_frozen import dataloader, lr_multiplier, model, optimizer, train

model.backbone.input_scale = 7 / 16
