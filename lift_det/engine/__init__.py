"""Training: LiFT's own as a model, a detector's loop, checkpoints, learning rates."""

from .checkpointer import Checkpointer
from .lift_pretraining import LiFTPretraining
from .lr_decay import get_lift_vit_lr_decay_rate
from .optim import ClippedAdamW
from .train import do_test, do_train

__all__ = [
    "Checkpointer",
    "ClippedAdamW",
    "LiFTPretraining",
    "do_test",
    "do_train",
    "get_lift_vit_lr_decay_rate",
]
