# Mask R-CNN, ViTDet-B with LiFT (dense).
# The ViT gets 1024 pixels, LiFT doubles its map from stride 16 to 8. LiFT starts as bilinear upsampling and is trained
# with the detector at the heads' learning rate. model.backbone.lift.checkpoint=FILE loads a trained LiFT, whose rate is
# the last block's.
# On several GPUs with one image each use model.backbone.lift.norm=SyncBN.
from detectron2.config import LazyCall as L

from lift_det.modeling import LazyUpsampler

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.lift = L(LazyUpsampler)(name=None, checkpoint="", norm=None)  # "lift", or what a checkpoint holds
train.ddp.broadcast_buffers = True  # LiFT's BatchNorm statistics are to be the same on every rank
