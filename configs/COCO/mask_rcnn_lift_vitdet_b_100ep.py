# Dense, the paper's way: the ViT sees 1024 pixels, LiFT takes its map of stride 16 to stride 8.
# LiFT starts as bilinear upsampling and learns with the detector, at the heads' rate. For one that was trained on
# this ViT: model.backbone.lift.checkpoint=FILE optimizer.params.lr_factor_func.lift_lr_rate=0.7 (the last block's),
# and what kind it is: of configs/LiFT/ lift.network=trunk lift.pool=3 lift.normalize=True lift.keep_length=True.
# Several GPUs with one image each: model.backbone.lift.norm=SyncBN.
from detectron2.config import LazyCall as L

from lift_det.modeling import LiFT

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.lift = L(LiFT)(
    in_channels="${..net.embed_dim}",
    patch_size="${..net.patch_size}",
    residual=True,
    norm="BN",
    network="paper",
    pool=0,
    normalize=False,
    keep_length=False,
    checkpoint="",
)
model.backbone.scale_factors = (2.0, 1.0, 0.5, 0.25)  # p2 to p5 from stride 8
train.ddp.broadcast_buffers = True  # LiFT's BatchNorm statistics are to be the same on every rank
