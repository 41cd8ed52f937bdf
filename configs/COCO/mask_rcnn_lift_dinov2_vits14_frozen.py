# A frozen DINOv2 ViT-S/14, dense. The ViT sees the image at 14/16 (896 pixels of 1024), so that a patch is 16 pixels of
# the image and the pyramid has ViTDet's strides.
from .mask_rcnn_lift_dino_vits16_frozen import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.name = "vit_small_patch14_dinov2.lvd142m"
model.backbone.input_scale = 14 / 16
