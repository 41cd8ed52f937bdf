"""Training: LiFT's own as a model, a detector's loop, checkpoints, learning rates."""

from .checkpointer import Checkpointer
from .lift_pretraining import LiFTPretraining
from .lr_decay import LayerDecay
from .optim import ClippedAdamW
from .progress import ProgressBar
from .sync_batchnorm import synchronise_batchnorm
from .train import do_test, do_train
from .trained_model import load_model, read_output_folder

__all__ = [
    "Checkpointer",
    "ClippedAdamW",
    "LayerDecay",
    "LiFTPretraining",
    "ProgressBar",
    "do_test",
    "do_train",
    "load_model",
    "read_output_folder",
    "synchronise_batchnorm",
]
