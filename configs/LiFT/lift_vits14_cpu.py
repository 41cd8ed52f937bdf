# LiFT for DINOv2 ViT-S/14 from a few hundred photographs, in half an hour on a CPU.
# A fixed number of crops is taken of each, and their features are computed once and kept on disk. Expects the ViT in
# $LIFT_DET_WEIGHTS/vit_small_patch14_fp16.safetensors, and photographs in train/ and val/ of
# $DETECTRON2_DATASETS/imagenet_mini, in any subfolders.
import os

from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train

_photographs = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "imagenet_mini")

model.net.name = "vit_small_patch14_dinov2.lvd142m"
model.net.pretrained = False
model.net.checkpoint = os.path.join(os.environ.get("LIFT_DET_WEIGHTS", "weights"), "vit_small_patch14_fp16.safetensors")
model.autocast = "bfloat16"
model.feature_cache = "${train.output_dir}/features"

dataloader.train.dataset.root = os.path.join(_photographs, "train")
dataloader.train.dataset.views = 2
dataloader.train.dataset.crop = "square"  # as sharp as the images that it is evaluated on
dataloader.test.dataset.root = os.path.join(_photographs, "val")
dataloader.train.total_batch_size = 2  # many small steps learn more in the time than few large ones
dataloader.test.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 0

optimizer.betas = (0.9, 0.98)

train.device = "cpu"
train.amp.enabled = False  # detectron2's needs CUDA; model.autocast is for any device
train.ddp.device_ids = None
train.epochs = 20  # 7000 iterations: each of the 2 views 10 times
train.epoch_images = 700
train.eval_period = "${train.max_iter}"
train.log_period = 50
train.output_dir = "./output/lift_vits14_cpu"
lr_multiplier.warmup_length = 0.02
