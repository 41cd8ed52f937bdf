# Dense, the paper's way: the ViT sees 1024 pixels, LiFT takes its map of stride 16 to stride 8.
# LiFT starts as bilinear upsampling and learns with the detector, at the heads' rate. One that was trained on this ViT
# comes in by model.backbone.lift.checkpoint=FILE, and learns at the last block's rate.
# Several GPUs with one image each: model.backbone.lift.norm=SyncBN.
from detectron2.config import LazyCall as L

from lift_det.modeling import LazyUpsampler

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.lift = L(LazyUpsampler)(name=None, checkpoint="", norm=None)  # "lift", or what a checkpoint holds
train.ddp.broadcast_buffers = True  # LiFT's BatchNorm statistics are to be the same on every rank
