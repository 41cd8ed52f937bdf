"""A trained model from what its training left: the folder of `metrics.json`, or a config and a file of weights."""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from lift_det import config
from lift_det.checkpoint import CheckpointError, read_state_dict
from lift_det.modeling import LazyUpsampler

from .checkpointer import Checkpointer

#: what a training leaves besides, in the order in which it is looked for; after them what `last_checkpoint` names
WEIGHT_FILES = ("model_best.pth", "model_ema.pth")


def read_output_folder(
    folder: str | os.PathLike, weights: str | os.PathLike | None = None
) -> tuple[DictConfig | CfgNode, str]:
    """The config and the weights of a training, from its output folder alone.

    A config is code: it names what is called. Take folders only from people whose code you would run.

    Args:
        folder: with ``config.yaml``, as detectron2's and this project's tools write it, and a checkpoint: the best one
            that a ``BestCheckpoint`` kept, else the averaged weights of an EMA, else the last.
        weights: a checkpoint to take in place of the folder's.

    Returns:
        The config, a LazyConfig's or yacs's, and the path of the weights.

    Raises:
        FileNotFoundError: no such folder, or no ``config.yaml`` or no checkpoint in it.
    """
    folder = os.fspath(folder)
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        what = "no config.yaml in it" if os.path.isdir(folder) else "no such folder"
        raise FileNotFoundError(
            f"'{folder}': {what}. Expected the output folder of a training (train.output_dir), which holds "
            "config.yaml, metrics.json and checkpoints."
        )
    return config.load(path), os.fspath(weights or find_weights(folder))


def find_weights(folder: str | os.PathLike) -> str:
    """The checkpoint of an output folder that :func:`read_output_folder` takes.

    Raises:
        FileNotFoundError: there is none.
    """
    names = list(WEIGHT_FILES)
    last = os.path.join(folder, "last_checkpoint")
    if os.path.isfile(last):
        with open(last, encoding="utf-8") as file:
            names.append(os.path.basename(file.read().strip()))
    names.append("model_final.pth")  # what last_checkpoint names in the end
    for name in names:
        path = os.path.join(folder, name)
        if name and os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f"'{os.fspath(folder)}' has no checkpoint: looked for {', '.join(names)}. The training may not have come to "
        "its first one (train.checkpointer.period); name a file of weights otherwise."
    )


def load_model(cfg: DictConfig | CfgNode, weights: str | os.PathLike, device: str | None = None) -> nn.Module:
    """The model of a config with trained weights, in evaluation mode.

    What the config would start a training from (``pretrained``, ``checkpoint`` of a ViT or a LiFT) is not read: the
    weights are whole. They also say which kind of LiFT it was that came from a file.

    Args:
        cfg: a LazyConfig's or yacs's; not changed.
        weights: what a training wrote, or any checkpoint that detectron2 reads, and safetensors.
        device: ``"cuda"`` or ``"cpu"``; None takes a GPU where there is one.

    Raises:
        CheckpointError: the weights are missing, broken, another model's, or not all of the model's.
    """
    if not os.path.isfile(weights) and "://" not in os.fspath(weights):
        raise CheckpointError(f"There is no file of weights '{os.fspath(weights)}'.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_without_weights(cfg, weights)
    missing: list[str] = []
    # what detectron2's checkpointer only warns of; buffers that it leaves out are the config's
    hook = model.register_load_state_dict_post_hook(lambda _, result: missing.extend(result.missing_keys))
    Checkpointer(model).load(os.fspath(weights))
    hook.remove()
    parameters = dict(model.named_parameters())
    missing = [name for name in missing if name in parameters]
    if missing:
        raise CheckpointError(
            f"'{os.fspath(weights)}' is not of the whole model: {len(missing)} of {len(parameters)} parameters are not "
            f"in it, {', '.join(missing[:3])} among them. Expected a checkpoint that a training of this config left."
        )
    return model.to(device).eval()


def build_without_weights(cfg: DictConfig | CfgNode, weights: str | os.PathLike = "") -> nn.Module:
    """The model of a config in training mode, before any weights: nothing is downloaded.

    It is on torch's default device: the CPU, or the one of a ``with torch.device("meta")`` around the call.

    Args:
        cfg: a LazyConfig's or yacs's; not changed.
        weights: where the config names a trained LiFT's file, the checkpoint from which its architecture is read in
            the file's place, if the checkpoint says it.

    Raises:
        ValueError: the config describes no model.
    """
    weights = PathManager.get_local_path(os.fspath(weights)) if weights else ""
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = str(torch.get_default_device())
        if "LIFT" in cfg.MODEL:  # add_lift_config has been called
            cfg.MODEL.VIT.CHECKPOINT, cfg.MODEL.VIT.PRETRAINED = "", False
            if cfg.MODEL.LIFT.CHECKPOINT and _say_their_lift(weights):
                cfg.MODEL.LIFT.CHECKPOINT = weights
        return build_model(cfg)
    if "model" not in cfg:
        raise ValueError(f"The config describes no model: it has {list(cfg)}.")
    model = cfg.model.copy()
    _start_from_nothing(model, weights)
    return instantiate(model)


def _start_from_nothing(node: DictConfig, weights: str) -> None:
    """Takes the weights that a training starts from out of the config of a model."""
    for key in list(node):
        value = node._get_node(key)
        if isinstance(value, DictConfig) and _is_lazy_upsampler(value):
            if value.checkpoint and _say_their_lift(weights):
                value.checkpoint = weights
        elif isinstance(value, DictConfig):
            _start_from_nothing(value, weights)
        elif key == "pretrained":
            node[key] = False
        elif key == "checkpoint":
            node[key] = ""


def _is_lazy_upsampler(node: DictConfig) -> bool:
    target = node.get("_target_")
    return (locate(target) if isinstance(target, str) else target) is LazyUpsampler


def _say_their_lift(weights: str) -> bool:
    """Whether a checkpoint says which kind of LiFT is in it; a converted one may not."""
    return bool(weights) and not {"upsampler", "patch_size"}.isdisjoint(read_state_dict(weights)[1])
