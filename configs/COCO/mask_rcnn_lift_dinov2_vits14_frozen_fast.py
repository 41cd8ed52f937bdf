# A frozen DINOv2 ViT-S/14, fast: the ViT sees the image at 7/16 (448 pixels of 1024).
from .mask_rcnn_lift_dinov2_vits14_frozen import dataloader, lr_multiplier, model, optimizer, train

model.backbone.input_scale = 7 / 16
