# Mask R-CNN, frozen DINOv2 ViT-S/14 with LiFT (dense).
# The ViT gets the image at 14/16 of its size (896 pixels for 1024): a patch is then 16 pixels of the image, and the
# pyramid has ViTDet's strides.
from .mask_rcnn_lift_dino_vits16_frozen import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.name = "vit_small_patch14_dinov2.lvd142m"
model.backbone.input_scale = 14 / 16
