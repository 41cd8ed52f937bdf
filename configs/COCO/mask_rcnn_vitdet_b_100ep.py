# The baseline, ViTDet-B without LiFT: the values of detectron2's projects/ViTDet, which its packages do not contain.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from lift_det.engine import LayerDecay

from ..common.data.coco_loader_lsj import dataloader
from ..common.models.mask_rcnn_vitdet import model

train = model_zoo.get_config("common/train.py").train
train.amp.enabled = True
train.ddp.fp16_compression = True
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"

# 100 ep = 184375 iters * 64 images/iter / 118000 images/ep
train.max_iter = 184375
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        milestones=[163889, 177546],
        num_updates=train.max_iter,
    ),
    warmup_length=250 / train.max_iter,
    warmup_factor=0.001,
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.lr_factor_func = L(LayerDecay)(lr_decay_rate=0.7, num_layers=12, lift_lr_rate=1.0)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
