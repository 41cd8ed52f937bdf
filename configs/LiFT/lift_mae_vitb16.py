# LiFT for MAE (He et al., 2022), ViT-B/16 without its final norm.
# That is the map that ViTDet's pyramid starts from. Expects the official release's
# mae_pretrain_vit_base.pth in $LIFT_DET_WEIGHTS.
import os
from functools import partial

import torch.nn as nn
from detectron2.config import LazyCall as L

from lift_det.modeling import ViT

from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

model.net = L(ViT)(
    img_size=448,
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    pretrain_img_size=224,
    pretrain_use_cls_token=True,
    use_rel_pos=False,
    checkpoint=os.path.join(os.environ.get("LIFT_DET_WEIGHTS", "weights"), "mae_pretrain_vit_base.pth"),
)
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
train.output_dir = "./output/lift_mae_vitb16"
