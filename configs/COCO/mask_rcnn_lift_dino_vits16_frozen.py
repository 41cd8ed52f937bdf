# Mask R-CNN, frozen DINO ViT-S/16 with LiFT (dense).
# Only LiFT, pyramid and heads are trained. timm downloads the ViT; offline use
# model.backbone.net.pretrained=False model.backbone.net.checkpoint=FILE.
from detectron2.config import LazyCall as L

from lift_det.modeling import TimmViT

from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net = L(TimmViT)(
    name="vit_small_patch16_224.dino", pretrained=True, checkpoint="", final_norm=True, out_feature="last_feat"
)
model.backbone.freeze_net = True
train.init_checkpoint = ""
train.epochs = 25
lr_multiplier.warmup_length = 250 / 46094
