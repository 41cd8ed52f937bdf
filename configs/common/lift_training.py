# LiFT's training, without labels, on a frozen ViT of timm: the parent of configs/LiFT.
# Any photographs can be used. The default is COCO, which users of detectron2 have; for others set
# dataloader.train.dataset.root=DIR dataloader.test.dataset.root=DIR.
import os

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from lift_det.config import iterations
from lift_det.data import ImageFolder, build_image_folder_loader
from lift_det.engine import ClippedAdamW
from lift_det.evaluation import ReconstructionEvaluator
from lift_det.modeling import LazyUpsampler, LiFTPretraining, TimmViT

_coco = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco")

model = L(LiFTPretraining)(
    net=L(TimmViT)(name="vit_small_patch16_224.dino", pretrained=True, checkpoint="", final_norm=True),
    lift=L(LazyUpsampler)(name=None, checkpoint=""),  # "lift_plus", or what a checkpoint holds
    pixel_mean=None,  # the ViT's own
    pixel_std=None,
    layer=None,
    facet="token",
    objectives=dict(full_from_half=1.0, half_from_quarter=1.0, full_from_quarter=1.0),
    losses=dict(cosine=1.0),
    feature_cache="",
    autocast="",
    freeze_batchnorm=False,
)

dataloader = OmegaConf.create()
dataloader.train = L(build_image_folder_loader)(
    # 448 is four times a whole number of patches of 8, 14 and 16
    dataset=L(ImageFolder)(
        root=os.path.join(_coco, "train2017"), image_size=448, train=True, crop="resized", crop_scale=(0.4, 1.0)
    ),
    total_batch_size=32,
    num_workers=4,
    train=True,
    seed="${train.seed}",
)
dataloader.test = L(build_image_folder_loader)(
    dataset=L(ImageFolder)(root=os.path.join(_coco, "val2017"), image_size=448, train=False),
    total_batch_size=32,
    num_workers=4,
    train=False,
)
dataloader.evaluator = L(ReconstructionEvaluator)(
    output_dir="${train.output_dir}", training_data="${dataloader.train.dataset.root}"
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer._target_ = ClippedAdamW
optimizer.max_norm = 1.0
optimizer.lr = 1e-3
optimizer.weight_decay = 0.05

train = model_zoo.get_config("common/train.py").train
train.epochs = 5
train.epoch_images = 118000
train.iterations_from_epochs = iterations  # makes a saved config.yaml import the resolver of the next line
train.max_iter = "${lift_det.iterations:${train.epochs},${train.epoch_images},${dataloader.train.total_batch_size}}"
train.seed = 0  # of the first weights, and of which image is seen when and how
train.amp.enabled = True
train.eval_period = 5000
train.checkpointer.period = 1000
train.checkpointer.max_to_keep = 2  # the frozen ViT is in each
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=250 / 18438,
    warmup_factor=0.001,
)
