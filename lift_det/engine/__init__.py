"""Training and prediction: loops, hooks, checkpoints, learning rates, recipes, trained models."""

from .checkpointer import Checkpointer
from .ema import EMA
from .hooks import BestCheckpoint
from .launch import launch
from .lr_decay import LayerDecay, get_optimizer_params
from .measure import Measurement, measure_config
from .optim import ClippedAdamW
from .predict_files import predict_files
from .prediction_file import PredictionFile
from .predictor import Predictor
from .progress import ProgressBar
from .recipes import fit_config, pretraining_config
from .train import create_ddp_model, do_test, do_train
from .trained_model import load_model, read_output_folder
from .trainer import Trainer

__all__ = [
    "EMA",
    "BestCheckpoint",
    "Checkpointer",
    "ClippedAdamW",
    "LayerDecay",
    "Measurement",
    "PredictionFile",
    "Predictor",
    "ProgressBar",
    "Trainer",
    "create_ddp_model",
    "do_test",
    "do_train",
    "fit_config",
    "get_optimizer_params",
    "launch",
    "load_model",
    "measure_config",
    "predict_files",
    "pretraining_config",
    "read_output_folder",
]
