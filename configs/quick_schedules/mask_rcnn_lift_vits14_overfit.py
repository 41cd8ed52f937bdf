# Does the whole chain learn? A real ViT-S/14, frozen, LiFT, pyramid and detectron2's heads on 8 real images of COCO,
# evaluated on the same 8. On a CPU, in minutes. $LIFT_DET_WEIGHTS/vit_small_patch14_fp16.safetensors holds the ViT.
import os

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from lift_det.engine import ClippedAdamW

from ..COCO.mask_rcnn_lift_dinov2_vits14_frozen import dataloader, lr_multiplier, model, optimizer, train

image_size = 320

train.device = "cpu"
train.amp.enabled = False
train.ddp.fp16_compression = False  # only AMP scales the gradients for it
train.output_dir = "./output/overfit"
train.max_iter = 300
train.eval_period = 300
train.log_period = 10
train.checkpointer.period = 100

dataloader.train.dataset.names = dataloader.test.dataset.names = "coco_2017_train_overfit8"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.augmentations = dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=image_size, max_size=image_size),
]
dataloader.evaluator.output_dir = "${train.output_dir}/inference"

model.backbone.net.pretrained = False
model.backbone.net.checkpoint = os.path.join(
    os.environ.get("LIFT_DET_WEIGHTS", "weights"), "vit_small_patch14_fp16.safetensors"
)
model.backbone.square_pad = image_size

# images a third as large as usual: the pyramid ends at p5, anchors and heads shrink with them
_levels = ["p2", "p3", "p4", "p5"]
model.backbone.top_block = None
model.backbone.out_channels = 128
model.proposal_generator.in_features = _levels
model.proposal_generator.head.in_channels = 128
model.proposal_generator.head.conv_dims = [-1]
model.proposal_generator.anchor_generator.sizes = [[24], [48], [96], [192]]
model.proposal_generator.anchor_generator.strides = [4, 8, 16, 32]
model.proposal_generator.post_nms_topk = (500, 300)
_heads = model.roi_heads
_heads.batch_size_per_image = 64
_heads.box_head.input_shape.channels = _heads.mask_head.input_shape.channels = 128
_heads.box_head.conv_dims = [128, 128]
_heads.mask_head.conv_dims = [128] * 5

optimizer._target_ = ClippedAdamW
optimizer.max_norm = 1.0
optimizer.lr = 5e-4
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.01)
lr_multiplier.warmup_length = 20 / train.max_iter
