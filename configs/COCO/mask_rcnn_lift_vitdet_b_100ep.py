# Dense, the paper's way: the ViT sees 1024 pixels, LiFT takes its map of stride 16 to stride 8.
# A LiFT that was trained on this ViT's features: model.backbone.lift.checkpoint=lift.safetensors. Without one it starts
# as bilinear upsampling and learns with the detector. Several GPUs, one image each: model.backbone.lift.norm=SyncBN.
from detectron2.config import LazyCall as L

from lift_det.modeling import LiFT

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.lift = L(LiFT)(
    in_channels="${..net.embed_dim}",
    patch_size="${..net.patch_size}",
    residual=True,
    norm="BN",
    checkpoint="",
)
model.backbone.scale_factors = (2.0, 1.0, 0.5, 0.25)  # p2 to p5 from stride 8
