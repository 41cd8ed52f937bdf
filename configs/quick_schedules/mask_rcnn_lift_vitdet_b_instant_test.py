# Test of mask_rcnn_lift_vitdet_b_100ep on a CPU: two iterations, two images of val2017.
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from ..COCO.mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

train.device = "cpu"
train.amp.enabled = False
train.ddp.fp16_compression = False  # only AMP scales the gradients for it
train.init_checkpoint = ""
train.max_iter = 2  # in place of epochs
train.log_period = 1
train.eval_period = 2
train.output_dir = "./output/instant_test"
train.checkpointer.period = 1000
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.01)
lr_multiplier.warmup_length = 0.5
model.roi_heads.box_predictor.test_score_thresh = 0.0  # untrained heads are sure of nothing, and masks are to be made

dataloader.train.total_batch_size = 1
dataloader.train.num_workers = 0
dataloader.test.num_workers = 0
dataloader.test.dataset.names = "coco_2017_val_first2"
dataloader.evaluator.output_dir = "${train.output_dir}/inference"
