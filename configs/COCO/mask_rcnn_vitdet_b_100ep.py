# Baseline: Mask R-CNN, ViTDet-B without LiFT.
# The values are those of detectron2's projects/ViTDet, which its packages do not contain.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from lift_det.config import iterations
from lift_det.engine import LayerDecay, get_optimizer_params

from ..common.data.coco_loader_lsj import dataloader
from ..common.models.mask_rcnn_vitdet import model

train = model_zoo.get_config("common/train.py").train
train.amp.enabled = True
train.ddp.fp16_compression = True
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"

train.epochs = 100
train.epoch_images = 118000
train.iterations_from_epochs = iterations  # makes a saved config.yaml import the resolver of the next line
train.max_iter = "${lift_det.iterations:${train.epochs},${train.epoch_images},${dataloader.train.total_batch_size}}"
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        # ViTDet's, at 8/9 and 26/27 of num_updates; they scale with the length of the training
        milestones=[163889, 177546],
        num_updates=184375,
    ),
    warmup_length=250 / 184375,
    warmup_factor=0.001,
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params._target_ = get_optimizer_params
optimizer.params.lr_factor_func = L(LayerDecay)(lr_decay_rate=0.7, num_layers=12, lift_lr_rate=None)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
