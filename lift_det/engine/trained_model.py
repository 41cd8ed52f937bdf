"""Loads a trained model from the output folder of its training, or from a config and a file of weights."""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import nn

from lift_det import config
from lift_det.checkpoint import CheckpointError, read_state_dict
from lift_det.modeling import GeneralizedRCNN, LazyUpsampler

from .checkpointer import Checkpointer

#: used in this order, before the checkpoint named in `last_checkpoint`
WEIGHT_FILES = ("model_best.pth", "model_ema.pth")


def read_output_folder(
    folder: str | os.PathLike, weights: str | os.PathLike | None = None
) -> tuple[DictConfig | CfgNode, str]:
    """Reads the config and finds the weights in the output folder of a training.

    A config can call any function. Only use folders that you trust.

    Args:
        folder: has ``config.yaml`` and weights: ``model_best.pth``, else ``model_ema.pth``, else the last checkpoint.
        weights: a checkpoint to use instead.

    Returns:
        The config (a LazyConfig or a yacs config) and the path of the weights.

    Raises:
        FileNotFoundError: the folder, its ``config.yaml`` or a checkpoint is missing.
    """
    folder = os.fspath(folder)
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        problem = "no config.yaml in it" if os.path.isdir(folder) else "no such folder"
        raise FileNotFoundError(f"'{folder}': {problem}. Expected the output folder of a training (train.output_dir).")
    return config.load(path), os.fspath(weights or find_weights(folder))


def find_weights(folder: str | os.PathLike) -> str:
    """Returns the path of the checkpoint that :func:`read_output_folder` uses."""
    names = list(WEIGHT_FILES)
    last = os.path.join(folder, "last_checkpoint")
    if os.path.isfile(last):
        with open(last, encoding="utf-8") as file:
            names.append(os.path.basename(file.read().strip()))
    names.append("model_final.pth")
    for name in names:
        path = os.path.join(folder, name)
        if name and os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f"'{os.fspath(folder)}' has no checkpoint (expected one of {', '.join(names)}): name a file of weights."
    )


def load_model(
    cfg: DictConfig | CfgNode,
    weights: str | os.PathLike,
    device: str | None = None,
    mask_format: str | None = "bitmask",
) -> nn.Module:
    """Builds the model of a config with trained weights, in evaluation mode.

    Pretrained weights that the config starts from (``pretrained``, ``checkpoint``) are not read.

    Args:
        cfg: a LazyConfig or a yacs config; not modified.
        weights: any checkpoint that detectron2 reads, or a safetensors file.
        device: ``"cuda"`` or ``"cpu"``. By default a GPU if there is one.
        mask_format: output of a :class:`lift_det.modeling.GeneralizedRCNN`: ``"bitmask"`` for ``pred_masks``,
            ``"rle"`` for ``pred_masks_rle``, None for the format in the config.

    Raises:
        CheckpointError: the weights are missing, broken, incomplete, or do not fit the model.
    """
    if not os.path.isfile(weights) and "://" not in os.fspath(weights):
        raise CheckpointError(f"There is no file of weights '{os.fspath(weights)}'.")
    model = build_without_weights(cfg, weights)
    missing: list[str] = []
    # detectron2's checkpointer only warns of missing keys
    hook = model.register_load_state_dict_post_hook(lambda _, result: missing.extend(result.missing_keys))
    Checkpointer(model).load(os.fspath(weights))
    hook.remove()
    parameters = dict(model.named_parameters())
    missing = [name for name in missing if name in parameters]
    if missing:
        raise CheckpointError(
            f"'{os.fspath(weights)}' lacks {len(missing)} of the model's {len(parameters)} parameters, such as "
            f"{', '.join(missing[:3])}. Expected a checkpoint from a training with this config."
        )
    if mask_format is not None and isinstance(model, GeneralizedRCNN):
        model.mask_format = mask_format
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def build_without_weights(cfg: DictConfig | CfgNode, weights: str | os.PathLike = "") -> nn.Module:
    """Builds the model of a config in training mode, without reading pretrained weights.

    If the config names the file of a trained LiFT, LiFT's architecture is read from the checkpoint ``weights`` instead,
    as far as it states the architecture. ``cfg`` is not modified.

    Raises:
        ValueError: the config has no model.
    """
    weights = PathManager.get_local_path(os.fspath(weights)) if weights else ""
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = str(torch.get_default_device())
        if "LIFT" in cfg.MODEL:  # add_lift_config was called
            cfg.MODEL.VIT.CHECKPOINT, cfg.MODEL.VIT.PRETRAINED = "", False
            if cfg.MODEL.LIFT.CHECKPOINT and _has_lift_metadata(weights):
                cfg.MODEL.LIFT.CHECKPOINT = weights
        return build_model(cfg)
    if "model" not in cfg:
        raise ValueError(f"The config has no model, only {list(cfg)}.")
    model = cfg.model.copy()
    _remove_weights(model, weights)
    return instantiate(model)


def _remove_weights(node: DictConfig, weights: str) -> None:
    """Removes the pretrained weights from a model's config, and replaces a trained LiFT's file by ``weights``."""
    for key in list(node):
        value = node._get_node(key)
        if isinstance(value, DictConfig) and "_target_" in value and config.locate_target(value) is LazyUpsampler:
            if value.checkpoint and _has_lift_metadata(weights):
                value.checkpoint = weights
        elif isinstance(value, DictConfig):
            _remove_weights(value, weights)
        elif key == "pretrained":
            node[key] = False
        elif key == "checkpoint":
            node[key] = ""


def _has_lift_metadata(weights: str) -> bool:
    """Whether a checkpoint states LiFT's architecture; a converted one may not."""
    return bool(weights) and not {"upsampler", "patch_size"}.isdisjoint(read_state_dict(weights)[1])
