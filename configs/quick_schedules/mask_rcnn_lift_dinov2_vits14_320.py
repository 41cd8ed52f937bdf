# Mask R-CNN, frozen DINOv2 ViT-S/14 with LiFT, 320 pixels, on a CPU.
# With small heads, for `lift-det train`. timm downloads the ViT; offline use
# model.backbone.net.pretrained=False model.backbone.net.checkpoint=FILE.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from lift_det.engine import ClippedAdamW

from ..COCO.mask_rcnn_lift_dinov2_vits14_frozen import dataloader, lr_multiplier, model, optimizer, train

image_size = 320

train.device = "cpu"
train.amp.enabled = False
train.ddp.fp16_compression = False  # only AMP scales the gradients for it
train.ddp.device_ids = None  # a CPU has none

dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 2
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeShortestEdge)(short_edge_length=(192, 320), sample_style="range", max_size=image_size),
]
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=image_size, max_size=image_size),
]

model.backbone.square_pad = image_size

# images are a third of the usual size: the pyramid ends at p5, anchors and heads are smaller
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

train.epochs = 2
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.01)
lr_multiplier.warmup_length = 250 / 59000
