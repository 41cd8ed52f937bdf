# Test that overfits Mask R-CNN, frozen ViT-S/14 with LiFT, to 8 images of COCO, on a CPU.
# Expects the ViT in $LIFT_DET_WEIGHTS/vit_small_patch14_fp16.safetensors.
import os

from .mask_rcnn_lift_dinov2_vits14_320 import dataloader, image_size, lr_multiplier, model, optimizer, train

train.output_dir = "./output/overfit"
train.epochs = 150  # 300 iterations
train.epoch_images = 8
train.eval_period = "${train.max_iter}"
train.log_period = 10
train.checkpointer.period = 100
lr_multiplier.warmup_length = 20 / 300

dataloader.train.dataset.names = dataloader.test.dataset.names = "coco_2017_train_overfit8"
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.augmentations = dataloader.test.mapper.augmentations
dataloader.evaluator.output_dir = "${train.output_dir}/inference"

model.backbone.net.pretrained = False
model.backbone.net.checkpoint = os.path.join(
    os.environ.get("LIFT_DET_WEIGHTS", "weights"), "vit_small_patch14_fp16.safetensors"
)
