# A frozen DINO ViT-S/16 from timm, dense: what the features themselves give. LiFT, pyramid and heads are trained.
# timm downloads the weights; offline: model.backbone.net.pretrained=False model.backbone.net.checkpoint=FILE
from detectron2.config import LazyCall as L

from lift_det.modeling import TimmViT

from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net = L(TimmViT)(
    name="vit_small_patch16_224.dino", pretrained=True, checkpoint="", norm=True, out_feature="last_feat"
)
model.backbone.freeze_net = True
model.backbone.lift.in_channels = 384
model.backbone.lift.patch_size = 16
train.init_checkpoint = ""

# 25 ep = 46094 iters * 64 images/iter / 118000 images/ep; steps at 8/9 and 26/27 as in the 100 epochs
train.max_iter = 46094
lr_multiplier.scheduler.milestones = [train.max_iter * 8 // 9, train.max_iter * 26 // 27]
lr_multiplier.scheduler.num_updates = train.max_iter
lr_multiplier.warmup_length = 250 / train.max_iter
