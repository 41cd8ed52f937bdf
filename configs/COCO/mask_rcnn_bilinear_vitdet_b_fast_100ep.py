# Control for mask_rcnn_lift_vitdet_b_fast_100ep: bilinear upsampling in place of LiFT.
from detectron2.config import LazyCall as L

from lift_det.modeling import LazyUpsampler

from .mask_rcnn_lift_vitdet_b_fast_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.lift = L(LazyUpsampler)(name="bilinear", checkpoint="")
