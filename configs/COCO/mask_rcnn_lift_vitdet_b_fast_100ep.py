# Mask R-CNN, ViTDet-B with LiFT (fast).
# The ViT gets 512 pixels, and LiFT doubles its map to the size of ViTDet's for 1024.
# Pyramid and heads have ViTDet's names and shapes, so train.init_checkpoint may be a released ViTDet without LiFT.
# net.img_size stays 1024: the tables of relative positions keep their size and are interpolated.
from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.input_scale = 0.5
