# Small Mask R-CNN with LiFT (dense) on synthetic images, on a CPU.
# Trained from scratch. The second half of `make quickstart`.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from lift_det.engine import ClippedAdamW

from ..COCO.mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.small_vit import net

_image_size = 128
_levels = ["p2", "p3", "p4", "p5"]
_channels = 64

dataloader.train.dataset.names = "lift_det_synthetic_train"
dataloader.test.dataset.names = "lift_det_synthetic_val"
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomFlip)(horizontal=False, vertical=True),
]
dataloader.test.mapper.augmentations = []

model.backbone.net = net
model.backbone.top_block = None
model.backbone.out_channels = _channels
model.backbone.square_pad = _image_size

model.proposal_generator.in_features = _levels
model.proposal_generator.head.in_channels = _channels
model.proposal_generator.head.conv_dims = [-1]
model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [80]]
model.proposal_generator.anchor_generator.strides = [4, 8, 16, 32]
model.proposal_generator.batch_size_per_image = 128
model.proposal_generator.pre_nms_topk = (400, 200)
model.proposal_generator.post_nms_topk = (200, 100)

_heads = model.roi_heads
_heads.num_classes = 4
_heads.batch_size_per_image = 32
_heads.box_head.input_shape.channels = _heads.mask_head.input_shape.channels = _channels
_heads.box_head.conv_dims = [_channels]
_heads.box_head.fc_dims = [256]
_heads.box_predictor.input_shape.channels = 256
_heads.mask_head.conv_dims = [_channels] * 3

optimizer._target_ = ClippedAdamW
optimizer.max_norm = 1.0
optimizer.lr = 1e-3
optimizer.weight_decay = 0.05
optimizer.params.pop("lr_factor_func")  # the ViT is not pretrained

train.device = "cpu"
train.amp.enabled = False
train.ddp.fp16_compression = False  # only AMP scales the gradients for it
train.init_checkpoint = ""  # `make quickstart` gives that of lift_synthetic_cpu
train.output_dir = "./output/mask_rcnn_synthetic"
train.epochs = 5.6  # 700 iterations
train.epoch_images = 1000
train.eval_period = "${train.max_iter}"
train.log_period = 20
train.checkpointer.period = 350
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.01)
lr_multiplier.warmup_length = 100 / 700

del net  # it is in the model
