"""Shipped configs and their models, as in `detectron2.model_zoo`.

There are no trained detectors to download, so the argument `trained` of detectron2's functions does not exist.
"""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from lift_det import config
from lift_det.config import ConfigNotFoundError, list_configs
from lift_det.config import find_shipped_config as get_config_file
from lift_det.engine import Checkpointer

__all__ = ["ConfigNotFoundError", "get", "get_config", "get_config_file", "list_configs"]


def get_config(name: str) -> DictConfig | CfgNode:
    """Loads a config: a LazyConfig for ``.py``, a yacs config for ``.yaml``.

    Raises:
        ConfigNotFoundError: the config does not exist.
    """
    return config.load(get_config_file(name))


def get(name: str, device: str | torch.device | None = None) -> nn.Module:
    """Builds the model of a config in training mode, and loads the checkpoint that the config starts from.

    To build a model without weights, use ``instantiate(get_config(name).model)``.

    Args:
        name: name of the config.
        device: by default that of the config, or the CPU if there is no GPU.

    Raises:
        ConfigNotFoundError: the config does not exist.
        FileNotFoundError: the checkpoint does not exist.
    """
    cfg = get_config(name)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    yacs = isinstance(cfg, CfgNode)
    weights = cfg.MODEL.WEIGHTS if yacs else cfg.train.init_checkpoint
    path = weights.partition("?")[0]  # detectron2 appends options such as "?matching_heuristics=True"
    if path and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(
            f"The config '{name}' starts from '{path}', which is not in '{Path.cwd()}'. Put the file there, or set "
            "$LIFT_DET_WEIGHTS to its folder."
        )
    if yacs:
        cfg.MODEL.DEVICE = str(device or cfg.MODEL.DEVICE)
        model = build_model(cfg)
    else:
        model = instantiate(cfg.model).to(device or cfg.train.device)
    if weights:
        Checkpointer(model).load(weights)
    return model
