# Fast: the ViT sees the image at 512 pixels, LiFT brings its map back to the size it has in ViTDet at 1024.
# Pyramid, heads and their names are ViTDet's: train.init_checkpoint may be a released ViTDet, only LiFT is new then.
# net.img_size stays 1024, so that the tables of relative positions keep their size and are interpolated.
from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.input_scale = 0.5
