"""Configs by name or path, with overrides: the one way to load one."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, LazyConfig, get_cfg
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lift_det.modeling import add_lift_config

CONFIG_SUFFIXES = (".py", ".yaml")
# common/ holds what configs are made of: no model of its own, so nothing to list.
_PARTS_FOLDER = "common"
_PACKAGE_FOLDER = Path(__file__).resolve().parent
# of yacs, of hydra's grammar, and of detectron2, which knows no deletion (`~key`)
_OVERRIDE_ERRORS = (
    HydraException, OmegaConfBaseException, AssertionError, KeyError, NotImplementedError, ValueError
)  # fmt: skip


class ConfigNotFoundError(RuntimeError):
    """No config has this name. A `RuntimeError`, because that is what detectron2's model zoo raises."""


class OverrideError(ValueError):
    """Overrides that cannot be applied to a config."""


def load(name_or_path: str | os.PathLike, overrides: Sequence[str] = ()) -> DictConfig | CfgNode:
    """Loads a config: a LazyConfig (``.py``, or the ``config.yaml`` that a training saved of one), or one of yacs.

    A config is code: it names what is called. Load only configs from people whose code you would run.

    Args:
        name_or_path: a file, or a shipped config's path under ``configs/``; see :func:`find_config`.
        overrides: ``key=value``, as detectron2's tools take them.

    Raises:
        ConfigNotFoundError: there is no such file, and no shipped config of that name.
        OverrideError: an override that cannot be read or applied.
        ValueError: the file is no config, or one of yacs with a key that there is not.
    """
    path = find_config(name_or_path)
    if _is_yacs(path):
        cfg = get_cfg()
        add_lift_config(cfg)
        try:
            cfg.merge_from_file(path)
        except KeyError as error:  # as yacs says it
            raise ValueError(f"'{path}' cannot be read: {error.args[0]}.") from error
        return apply_overrides(cfg, overrides)
    cfg = LazyConfig.load(path)
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"'{path}' is no config: expected a LazyConfig, or one of yacs.")
    if not path.endswith(".py"):
        _upgrade(cfg)
    return apply_overrides(cfg, overrides)


def apply_overrides(cfg: DictConfig | CfgNode, overrides: Sequence[str]) -> DictConfig | CfgNode:
    """Applies ``key=value`` overrides; see :func:`load`. A yacs config is changed in place.

    For yacs, detectron2's ``KEY VALUE`` pairs are taken, too.
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
    """The path of a config.

    Args:
        name_or_path: a file; or a name under ``configs/``, such as ``COCO/mask_rcnn_lift_vitdet_b_100ep.py``. The
            suffix may be left out; ``.py`` is then tried before ``.yaml``. Parts of configs
            (``common/data/coco_loader_lsj.py``) are found too.

    Raises:
        ConfigNotFoundError: there is none; the message has the names closest to it.
    """
    name = os.fspath(name_or_path)
    return name if os.path.isfile(name) else find_shipped_config(name)


def find_shipped_config(name: str) -> str:
    """As :func:`find_config`, for names alone."""
    root = _configs_folder()
    # with_suffix would take a dot in a name for a suffix
    candidates = [name] if name.endswith(CONFIG_SUFFIXES) else [name + suffix for suffix in CONFIG_SUFFIXES]
    for candidate in candidates:
        path = (root / candidate).resolve()
        if path.is_file() and path.is_relative_to(root):
            return str(path)
    raise ConfigNotFoundError(_not_found_message(name))


def list_configs() -> list[str]:
    """The names of all shipped configs that describe a model, sorted: those of every folder but ``common/``."""
    return [name for name in _all_names() if not name.startswith(f"{_PARTS_FOLDER}/")]


def _is_yacs(path: str) -> bool:
    if path.endswith(".py"):
        return False
    with open(path, encoding="utf-8") as file:
        # whose keys are all capitals, where a LazyConfig has `model` and `train`
        return re.search(r"^(_BASE_|[A-Z][A-Z_]*):", file.read(), re.MULTILINE) is not None


# Classes that moved in November 2026, as config.yaml of earlier trainings names them.
_MOVED = {
    "lift_det.engine.LiFTPretraining": "lift_det.modeling.LiFTPretraining",
    "lift_det.evaluation.PredictionPictures": "lift_det.visualization.PredictionPictures",
}


def _upgrade(node: DictConfig | ListConfig) -> None:
    """Rewrites a config that a training saved before November 2026, so that its folder can still be used."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)) and not child._is_none():
            _upgrade(child)
    if not isinstance(node, DictConfig):
        return
    if node.get("_target_") in _MOVED:
        node._target_ = _MOVED[node._target_]
    elif node.get("_target_") == "lift_det.LiFT" and "network" in node:
        improved = node.network == "trunk" or node.pool or node.normalize
        node._target_ = "lift_det.LiFTPlus" if improved else "lift_det.LiFT"
        for key in ("residual",) if improved else ("network", "pool", "normalize"):
            node.pop(key)
    elif node.get("_target_") == "lift_det.LiFTFeaturePyramid" and "scale_factors" in node:
        lift = node.get("lift")
        if lift is not None and "patch_size" in lift:
            patch_size = lift.patch_size
        else:  # a timm name has it in it
            patch_size = node.net.get("patch_size") or int(re.search(r"patch(\d+)", node.net.name)[1])
        stride = patch_size / node.input_scale / (1 if lift is None else 2**node.steps)
        node.level_strides = [round(stride / scale) for scale in node.pop("scale_factors")]


def _configs_folder() -> Path:
    """`configs/` inside the package in an installed copy, `configs/` at the top of the sources in a checkout."""
    in_package, in_checkout = _PACKAGE_FOLDER / "model_zoo" / "configs", _PACKAGE_FOLDER.parent / "configs"
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
    message = f"There is no config '{name}', neither a file nor a shipped one."
    if close:
        message += f" Close to it: {', '.join(close)}."
    return message + " All names: `lift-det configs --names`, or lift_det.model_zoo.list_configs()."


def iterations(epochs: float, epoch_images: int, batch_size: int) -> int:
    """Length of a training: iterations of ``batch_size`` images in ``epochs`` times ``epoch_images``.

    Configs call it as ``${lift_det.iterations:…}``, so that ``train.epochs=50`` or another batch size is one key.
    """
    return math.ceil(round(epochs * epoch_images / batch_size, 6))  # 1.1 · 100 is a little more than 110


def state_iterations(cfg: DictConfig, count: int) -> None:
    """Makes ``train.max_iter`` a number, which epochs and batch size do not change any more."""
    cfg.train.max_iter = count
    for name in ("epochs", "epoch_images", "iterations_from_epochs"):
        cfg.train.pop(name, None)


OmegaConf.register_new_resolver("lift_det.iterations", iterations, replace=True)
