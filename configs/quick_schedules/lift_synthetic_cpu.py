# LiFT for a small untrained ViT on synthetic images, on a CPU.
# The first half of `make quickstart`. Its checkpoint, which also holds the ViT, starts the detector of
# mask_rcnn_lift_synthetic_cpu.
import os

from detectron2 import model_zoo

from ..common.lift_training import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.small_vit import net

_constants = model_zoo.get_config("common/data/constants.py").constants
_images = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "synthetic")

model.net = net
model.lift.name = "lift"  # the paper's network, residual: what the detector builds, too
model.pixel_mean = _constants.imagenet_rgb256_mean
model.pixel_std = _constants.imagenet_rgb256_std
model.objectives.full_from_quarter = 0.0  # the paper's two

dataloader.train.dataset.root = os.path.join(_images, "train")
dataloader.test.dataset.root = os.path.join(_images, "val")
dataloader.train.dataset.image_size = dataloader.test.dataset.image_size = 128
dataloader.train.dataset.crop_scale = (0.25, 1.0)
dataloader.train.total_batch_size = dataloader.test.total_batch_size = 8
dataloader.train.num_workers = dataloader.test.num_workers = 0

optimizer.weight_decay = 0.01

train.device = "cpu"
train.amp.enabled = False
train.output_dir = "./output/lift_synthetic"
train.epochs = 0.8  # 100 iterations
train.epoch_images = 1000
train.eval_period = "${train.max_iter}"
train.log_period = 10
train.checkpointer.period = 100
lr_multiplier.warmup_length = 0.1

del net  # it is in the model
