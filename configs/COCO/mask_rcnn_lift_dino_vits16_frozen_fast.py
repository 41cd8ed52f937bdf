# A frozen DINO ViT-S/16, fast: the ViT sees the image at half size.
from .mask_rcnn_lift_dino_vits16_frozen import dataloader, lr_multiplier, model, optimizer, train

model.backbone.input_scale = 0.5
