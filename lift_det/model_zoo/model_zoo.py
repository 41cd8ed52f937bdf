"""Shipped configs and their models, as in `detectron2.model_zoo`.

There are no trained detectors to download, so that no function here takes detectron2's `trained`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from lift_det import config
from lift_det.engine import Checkpointer

get_config_file = config.find_shipped_config


def get_config(name: str) -> DictConfig | CfgNode:
    """A config by name, ready to be changed: a LazyConfig for `.py`, a yacs `CfgNode` for `.yaml`.

    Raises:
        ConfigNotFoundError: as :func:`get_config_file`.
    """
    return config.load(get_config_file(name))


def get(name: str, device: str | torch.device | None = None) -> nn.Module:
    """The model of a config, with the weights that the config starts from, in training mode as detectron2 returns it.

    Args:
        name: as for :func:`get_config_file`.
        device: where the model is to be. Left out it is what the config says, or the CPU where there is no GPU.

    Raises:
        ConfigNotFoundError: as :func:`get_config_file`.
        FileNotFoundError: the config starts from a file that is not there. To build a LazyConfig's model without
            weights: `instantiate(get_config(name).model)`.
    """
    cfg = get_config(name)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        weights = cfg.MODEL.WEIGHTS
        _check_weights_exist(name, weights)
        model = build_model(cfg)
    else:
        train = cfg.get("train", {})
        weights = train.get("init_checkpoint", "")
        # Before the model, which takes a while to build.
        _check_weights_exist(name, weights)
        model = instantiate(cfg.model).to(device or train.get("device", "cuda"))
    if weights:
        Checkpointer(model).load(weights)
    return model


def _check_weights_exist(name: str, weights: str) -> None:
    """Raise if a config's checkpoint is a local file that is not there; URLs are left to detectron2's PathManager."""
    path = weights.partition("?")[0]  # "file.pth?matching_heuristics=True" is detectron2's way to pass an option
    if path and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(
            f"The config '{name}' starts from the checkpoint '{path}', which is not there "
            f"(looked from '{Path.cwd()}'). Put it there, point $LIFT_DET_WEIGHTS at the folder that has it, "
            "or build the model without weights: "
            f"detectron2.config.instantiate(lift_det.model_zoo.get_config('{name}').model)."
        )
