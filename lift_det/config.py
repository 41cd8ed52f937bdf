"""Loads configs by name or path, with overrides."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.utils.registry import locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lift_det.modeling import add_lift_config
from lift_det.modeling.upsamplers.files import RENAMED_SETTINGS

CONFIG_SUFFIXES = (".py", ".yaml")
_PACKAGE_FOLDER = Path(__file__).resolve().parent
# raised by yacs, hydra's grammar, and detectron2 (for deletions, `~key`)
_OVERRIDE_ERRORS = (
    HydraException, OmegaConfBaseException, AssertionError, KeyError, NotImplementedError, ValueError
)  # fmt: skip

# Old names in a config.yaml of an earlier version: of classes, and of arguments by class.
_MOVED = {
    "lift_det.engine.LiFTPretraining": "lift_det.modeling.LiFTPretraining",
    "lift_det.evaluation.PredictionPictures": "lift_det.visualization.PredictionPictures",
}
_RENAMED_ARGUMENTS = {
    "FeatureExtractor": {"norm": "final_norm", "allow_lift": "ignore_mismatch"},
    "GeneralizedRCNN": {"allow_partial": "ignore_mismatch"},
    "LazyUpsampler": RENAMED_SETTINGS,
    "LiFT": RENAMED_SETTINGS,
    "LiFTFeaturePyramid": {"allow_lift": "ignore_mismatch"},
    "LiFTPlus": RENAMED_SETTINGS,
    "LiFTPretraining": {"norm": "final_norm", "freeze_norm": "freeze_batchnorm"},
    "TimmViT": {"norm": "final_norm", "allow_unexpected": "ignore_unexpected"},
}
_RENAMED_YACS = {
    "MODEL.VIT.NORM": "MODEL.VIT.FINAL_NORM",
    "MODEL.LIFT.ALLOW_LIFT": "MODEL.LIFT.IGNORE_MISMATCH",
    "MODEL.LIFT.ALLOW_PARTIAL": "MODEL.IGNORE_MISMATCH",
}


class ConfigNotFoundError(RuntimeError):
    """A config does not exist. It is a `RuntimeError`, as in detectron2's model zoo."""


class OverrideError(ValueError):
    """Overrides cannot be applied to a config."""


def load(name_or_path: str | os.PathLike, overrides: Sequence[str] = ()) -> DictConfig | CfgNode:
    """Loads a LazyConfig (``.py``, or the ``config.yaml`` of a training) or a yacs config.

    A config can call any function. Only load configs that you trust.

    Args:
        name_or_path: a file or the name of a shipped config; see :func:`find_config`.
        overrides: ``key=value``, as for detectron2's tools.

    Raises:
        ConfigNotFoundError: the config does not exist.
        OverrideError: an override cannot be parsed or applied.
        ValueError: the file is not a config, or is a yacs config with an unknown key.
    """
    path = find_config(name_or_path)
    if _is_yacs(path):
        return apply_overrides(_load_yacs(path), overrides)
    cfg = LazyConfig.load(path)
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"'{path}' is not a config: expected a LazyConfig or a yacs config.")
    if not path.endswith(".py"):
        _upgrade(cfg)
    return apply_overrides(cfg, overrides)


def apply_overrides(cfg: DictConfig | CfgNode, overrides: Sequence[str]) -> DictConfig | CfgNode:
    """Applies ``key=value`` overrides and returns the config. A yacs config is modified in place.

    For yacs, detectron2's alternating ``KEY VALUE`` is supported, too.

    Raises:
        OverrideError: an override cannot be parsed or applied.
    """
    try:
        if isinstance(cfg, DictConfig):
            return LazyConfig.apply_overrides(cfg, list(overrides))
        pairs = all("=" in override for override in overrides)
        cfg.merge_from_list([part for text in overrides for part in text.split("=", 1)] if pairs else list(overrides))
        return cfg
    except _OVERRIDE_ERRORS as error:
        raise OverrideError(f"the overrides {list(overrides)} cannot be applied: {error}") from error


def find_config(name_or_path: str | os.PathLike) -> str:
    """Returns the path of a config.

    Args:
        name_or_path: a file, or a name in ``configs/`` such as ``COCO/mask_rcnn_lift_vitdet_b_100ep.py``; the suffix
            is optional. Parts of configs (``common/...``) are found, too.

    Raises:
        ConfigNotFoundError: the config does not exist. The message suggests similar names.
    """
    name = os.fspath(name_or_path)
    return name if os.path.isfile(name) else find_shipped_config(name)


def find_shipped_config(name: str) -> str:
    """Returns the path of a shipped config; see :func:`find_config`."""
    root = _configs_folder()
    for candidate in [name] if name.endswith(CONFIG_SUFFIXES) else [name + suffix for suffix in CONFIG_SUFFIXES]:
        path = (root / candidate).resolve()
        if path.is_file() and path.is_relative_to(root):
            return str(path)
    names = list_configs()
    stems = difflib.get_close_matches(Path(name).stem, {Path(listed).stem for listed in names}, n=3)
    close = [listed for stem in stems for listed in names if Path(listed).stem == stem]
    suggestion = f" Similar names: {', '.join(close)}." if close else ""
    raise ConfigNotFoundError(
        f"There is no config '{name}', neither a file nor a shipped config.{suggestion} `lift-det configs` and "
        "lift_det.model_zoo.list_configs() list all names."
    )


def list_configs() -> list[str]:
    """Returns the sorted names of all shipped configs, without the parts in ``common/``."""
    root = _configs_folder()
    paths = (path.relative_to(root) for path in root.rglob("*") if path.suffix in CONFIG_SUFFIXES)
    return sorted(path.as_posix() for path in paths if path.parts[0] != "common" and path.name != "__init__.py")


def _configs_folder() -> Path:
    """Returns `configs/`, which is in the package if it is installed, and beside it in a checkout."""
    folders = _PACKAGE_FOLDER / "model_zoo" / "configs", _PACKAGE_FOLDER.parent / "configs"
    for folder in folders:
        if folder.is_dir():
            return folder.resolve()
    raise ConfigNotFoundError(f"lift_det's configs are not in {folders[0]} or {folders[1]}: install lift_det again.")


def _is_yacs(path: str) -> bool:
    if path.endswith(".py"):
        return False
    with open(path, encoding="utf-8") as file:
        # yacs configs have keys in upper case
        return re.search(r"^(_BASE_|[A-Z][A-Z_]*):", file.read(), re.MULTILINE) is not None


def _load_yacs(path: str) -> CfgNode:
    cfg = get_cfg()
    add_lift_config(cfg)
    for old in _RENAMED_YACS:
        node, key = _yacs_node(cfg, old)
        node[key] = None
    try:
        cfg.merge_from_file(path)
    except KeyError as error:
        raise ValueError(f"'{path}' cannot be read: {error.args[0]}.") from error
    for old, new in _RENAMED_YACS.items():
        node, key = _yacs_node(cfg, old)
        value = node.pop(key)
        if value is not None:
            node, key = _yacs_node(cfg, new)
            node[key] = value
    return cfg


def _yacs_node(cfg: CfgNode, name: str) -> tuple[CfgNode, str]:
    *path, key = name.split(".")
    return reduce(getitem, path, cfg), key


def _upgrade(node: DictConfig | ListConfig) -> None:
    """Converts a config.yaml of an earlier version."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)) and not child._is_none():
            _upgrade(child)
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        return
    node._target_ = _MOVED.get(node._target_, node._target_)
    package, _, name = node._target_.rpartition(".")
    if not package.startswith("lift_det"):
        return
    if name == "LiFT" and "network" in node:  # LiFT and LiFTPlus were one class
        improved = node.network == "trunk" or node.pool or node.normalize
        node._target_ = "lift_det.LiFTPlus" if improved else "lift_det.LiFT"
        for key in ("residual",) if improved else ("network", "pool", "normalize"):
            node.pop(key)
    elif name == "LiFTPretraining":
        node.pop("mirror", None)  # an option that was removed
    elif name == "LiFTFeaturePyramid" and "scale_factors" in node:  # replaced by level_strides
        lift = node.get("lift")
        if lift is not None and "patch_size" in lift:
            patch_size = lift.patch_size
        else:  # timm's names contain it
            patch_size = node.net.get("patch_size") or int(re.search(r"patch(\d+)", node.net.name)[1])
        stride = patch_size / node.input_scale / (1 if lift is None else 2**node.steps)
        node.level_strides = [round(stride / scale) for scale in node.pop("scale_factors")]
    for old, new in _RENAMED_ARGUMENTS.get(name, {}).items():
        if old in node:
            node[new] = node._get_node(old)
            del node[old]


def iterations(epochs: float, epoch_images: int, batch_size: int) -> int:
    """Returns the iterations in ``epochs`` of ``epoch_images`` each, rounded up.

    Configs call it as ``${lift_det.iterations:...}``, so that ``train.epochs`` can be overridden.
    """
    return math.ceil(round(epochs * epoch_images / batch_size, 6))  # floats: 1.1 * 100 > 110


def state_iterations(cfg: DictConfig, count: int) -> None:
    """Sets ``train.max_iter`` to a number, and removes ``train.epochs``."""
    cfg.train.max_iter = count
    for name in ("epochs", "epoch_images", "iterations_from_epochs"):
        cfg.train.pop(name, None)


def locate_target(node: DictConfig) -> Any:
    """Returns the callable of a LazyCall, whose ``_target_`` is a name if the config was saved."""
    return locate(node._target_) if isinstance(node._target_, str) else node._target_


OmegaConf.register_new_resolver("lift_det.iterations", iterations, replace=True)
