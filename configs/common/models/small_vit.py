# A ViT for images of 128 pixels that trains from scratch on a CPU in minutes, because it has ViTDet's optional
# convolutional residual blocks.
from functools import partial

import torch.nn as nn
from detectron2.config import LazyCall as L

from lift_det.modeling import ViT

net = L(ViT)(
    img_size=128,
    patch_size=8,
    embed_dim=128,
    depth=4,
    num_heads=4,
    drop_path_rate=0.0,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    residual_block_indexes=[0, 1, 2, 3],
    pretrain_img_size=128,
    pretrain_use_cls_token=False,
    out_feature="last_feat",
)
