"""Training and prediction: trainer, hooks, checkpoints, learning rates, recipes, trained models."""

from .checkpointer import Checkpointer
from .hooks import BestCheckpoint, ProgressBar
from .optim import ClippedAdamW, LayerDecay, get_optimizer_params
from .predict_files import predict_files
from .predictor import Predictor
from .recipes import fit_config, pretraining_config
from .train import do_test, do_train, launch, wrap_ddp
from .trained_model import load_model, read_output_folder
from .trainer import Trainer

__all__ = [
    "BestCheckpoint",
    "Checkpointer",
    "ClippedAdamW",
    "LayerDecay",
    "Predictor",
    "ProgressBar",
    "Trainer",
    "do_test",
    "do_train",
    "fit_config",
    "get_optimizer_params",
    "launch",
    "load_model",
    "predict_files",
    "pretraining_config",
    "read_output_folder",
    "wrap_ddp",
]
