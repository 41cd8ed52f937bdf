# The first half of `make quickstart`: LiFT's own training, a few steps on the features of a small, untrained ViT.
# The detector (mask_rcnn_lift_synthetic_cpu) starts from this training's checkpoint, which holds the ViT, too.
import os

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from lift_det.data import ImageFolder, build_image_folder_loader
from lift_det.engine import ClippedAdamW, LiFTPretraining
from lift_det.evaluation import ReconstructionEvaluator

from ..common.models.small_vit import lift, net

_constants = model_zoo.get_config("common/data/constants.py").constants
_images = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "synthetic")

model = L(LiFTPretraining)(
    net=net,
    lift=lift,
    pixel_mean=_constants.imagenet_rgb256_mean,
    pixel_std=_constants.imagenet_rgb256_std,
)

dataloader = OmegaConf.create()
dataloader.train = L(build_image_folder_loader)(
    dataset=L(ImageFolder)(root=os.path.join(_images, "train"), image_size=128, train=True, crop="resized"),
    total_batch_size=8,
    num_workers=0,
    train=True,
    seed="${train.seed}",
)
dataloader.test = L(build_image_folder_loader)(
    dataset=L(ImageFolder)(root=os.path.join(_images, "val"), image_size=128, train=False),
    total_batch_size=8,
    num_workers=0,
    train=False,
)
dataloader.evaluator = L(ReconstructionEvaluator)(
    output_dir="${train.output_dir}", training_data="${dataloader.train.dataset.root}"
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer._target_ = ClippedAdamW
optimizer.max_norm = 1.0
optimizer.lr = 1e-3
optimizer.weight_decay = 0.01

train = model_zoo.get_config("common/train.py").train
train.device = "cpu"
train.seed = 0  # of weights, and of which image is seen when and how
train.output_dir = "./output/lift_synthetic"
train.max_iter = 100
train.eval_period = 100
train.log_period = 10
train.checkpointer.period = 100
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.1,
    warmup_factor=0.001,
)

del lift, net  # they are in the model
