"""Named configs, as in `detectron2.model_zoo`.

There are no trained detectors to download, so that no function here takes detectron2's `trained`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

CONFIG_SUFFIXES = (".py", ".yaml")
# common/ holds what configs are made of: no model of its own, so nothing to list.
_PARTS_FOLDER = "common"
_PACKAGE_FOLDER = Path(__file__).resolve().parent


class ConfigNotFoundError(RuntimeError):
    """No config has this name. A `RuntimeError`, because that is what detectron2's model zoo raises."""


def get_config_file(name: str) -> str:
    """The path of a config.

    Args:
        name: its path under `configs/`, such as `COCO/mask_rcnn_lift_vitdet_b_100ep.py`. The suffix may be left out;
            `.py` is then tried before `.yaml`. Parts of configs (`common/data/coco_loader_lsj.py`) are found too.

    Raises:
        ConfigNotFoundError: there is none; the message has the names closest to it.
    """
    root = _configs_folder()
    # with_suffix would take a dot in a name for a suffix
    candidates = [name] if name.endswith(CONFIG_SUFFIXES) else [name + suffix for suffix in CONFIG_SUFFIXES]
    for candidate in candidates:
        path = (root / candidate).resolve()
        if path.is_file() and path.is_relative_to(root):
            return str(path)
    raise ConfigNotFoundError(_not_found_message(name))


def get_config(name: str) -> DictConfig | CfgNode:
    """A config by name, ready to be changed: a LazyConfig for `.py`, a yacs `CfgNode` for `.yaml`.

    Raises:
        ConfigNotFoundError: as :func:`get_config_file`.
    """
    path = get_config_file(name)
    if path.endswith(".py"):
        return LazyConfig.load(path)
    # Here, not above: this room stands beside the others, and names of configs need none of them.
    from lift_det.modeling import add_lift_config

    cfg = get_cfg()
    add_lift_config(cfg)
    cfg.merge_from_file(path)
    return cfg


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
    from lift_det.engine import Checkpointer

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


def list_configs() -> list[str]:
    """The names of all configs that describe a model, sorted: those of every folder but `common/`."""
    return [name for name in _all_names() if not name.startswith(f"{_PARTS_FOLDER}/")]


def _configs_folder() -> Path:
    """`configs/` inside this package in an installed copy, `configs/` at the top of the sources in a checkout."""
    in_package, in_checkout = _PACKAGE_FOLDER / "configs", _PACKAGE_FOLDER.parents[1] / "configs"
    for folder in (in_package, in_checkout):
        if folder.is_dir():
            return folder.resolve()
    raise ConfigNotFoundError(
        f"lift_det's configs are neither in {in_package} nor in {in_checkout}: this copy of lift_det is incomplete. "
        "Install it again, from a whole checkout."
    )


def _all_names() -> list[str]:
    root = _configs_folder()
    paths = (path for path in root.rglob("*") if path.suffix in CONFIG_SUFFIXES and path.name != "__init__.py")
    return sorted(path.relative_to(root).as_posix() for path in paths)


def _not_found_message(name: str) -> str:
    names = _all_names()
    # Compared without folder and suffix too, which is how most names go wrong.
    by_stem = {Path(candidate).stem: candidate for candidate in names}
    close = difflib.get_close_matches(name, names, n=3)
    close += [by_stem[stem] for stem in difflib.get_close_matches(Path(name).stem, by_stem, n=3)]
    close = list(dict.fromkeys(close))[:3]
    message = f"lift_det has no config named '{name}'."
    if close:
        message += f" Close to it: {', '.join(close)}."
    return message + " All names: `lift-det configs --names`, or lift_det.model_zoo.list_configs()."


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
