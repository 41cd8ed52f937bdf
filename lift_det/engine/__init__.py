"""Training: LiFT's own as a model, a detector's loop, checkpoints, learning rates."""

from .checkpointer import Checkpointer
from .ema import EMA
from .fit_config import fit_config
from .hooks import BestCheckpoint
from .launch import launch
from .lift_pretraining import LiFTPretraining
from .lr_decay import LayerDecay
from .measure import Measurement, measure_config
from .optim import ClippedAdamW
from .predictor import Predictor
from .progress import ProgressBar
from .sync_batchnorm import synchronise_batchnorm
from .train import create_ddp_model, do_test, do_train
from .trained_model import load_model, read_output_folder
from .trainer import Trainer

__all__ = [
    "EMA",
    "BestCheckpoint",
    "Checkpointer",
    "ClippedAdamW",
    "LayerDecay",
    "LiFTPretraining",
    "Measurement",
    "Predictor",
    "ProgressBar",
    "Trainer",
    "create_ddp_model",
    "do_test",
    "do_train",
    "fit_config",
    "launch",
    "load_model",
    "measure_config",
    "read_output_folder",
    "synchronise_batchnorm",
]
