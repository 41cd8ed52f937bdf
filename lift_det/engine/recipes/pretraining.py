"""A config that trains LiFT for a pretrained ViT."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import LazyCall, instantiate
from omegaconf import DictConfig

from lift_det import config
from lift_det.modeling import NamedViT

from ..hooks import ProgressBar

#: without validation images, every n-th image is held out
_HOLDOUT = 20


def pretraining_config(
    vit: NamedViT,
    images: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    val: Sequence[str | os.PathLike] | None = None,
    device: str = "cuda",
    layer: int | None = None,
    facet: str = "token",
    iterations: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    overrides: Sequence[str] = (),
) -> DictConfig:
    """Returns a config that trains LiFT and evaluates it at the end, for :func:`lift_det.engine.do_train`.

    It is based on ``common/lift_training.py``, or for a CPU on ``LiFT/lift_vits14_cpu.py``.

    Args:
        vit: see :func:`lift_det.modeling.find_vit`.
        images: folders, searched recursively.
        output: folder for checkpoints, metrics and ``lift.safetensors``.
        val: folders to evaluate on. By default every 20th image is held out.
        device: ``"cuda"`` or ``"cpu"``.
        layer, facet: features of the ViT to train on; see :class:`lift_det.FeatureExtractor`.
        iterations: length of the training. By default that of the config.
        batch_size: images in an iteration, over all processes. By default that of the config.
        image_size: in pixels, a multiple of four patches. By default 448 or the next such multiple.
        overrides: ``key=value``, applied last.

    Raises:
        ValueError: a number is out of range, or there are too few images.
        lift_det.config.OverrideError: an override cannot be applied.
    """
    unit = 4 * vit.patch_size
    size = 448 + -448 % unit if image_size is None else image_size
    if size % unit:
        raise ValueError(f"image_size={size}: expected a multiple of {unit}, four patches of {vit.patch_size} pixels.")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations={iterations}: expected a positive number.")
    cfg = config.load("LiFT/lift_vits14_cpu.py" if device == "cpu" else "common/lift_training.py")
    cfg.model.net.update(vit.arguments())
    cfg.model.update(pixel_mean=vit.pixel_mean, pixel_std=vit.pixel_std, layer=layer, facet=facet)
    for split, folders in (("train", images), ("test", val or images)):
        dataset = cfg.dataloader[split].dataset
        dataset.root = [os.path.abspath(folder) for folder in folders]
        dataset.image_size = size
        if val is None:
            dataset.holdout = _HOLDOUT
    cfg.train.device = device
    config.state_iterations(cfg, iterations or cfg.train.max_iter)
    if batch_size is not None:
        cfg.dataloader.train.total_batch_size = batch_size
    cfg.train.hooks = [LazyCall(ProgressBar)()]
    cfg = config.apply_overrides(cfg, overrides)
    if "epochs" in cfg.train:
        raise ValueError("train.epochs has no effect here: set iterations (--iterations, train.max_iter).")
    cfg.train.output_dir = os.fspath(output)  # cannot be overridden: lift.safetensors is read from it afterwards
    cfg.train.eval_period = cfg.train.max_iter

    train = cfg.dataloader.train
    try:
        num_images = len(instantiate(train.dataset))
    except ValueError as error:
        raise ValueError(f"{error}\nIf there are few images, name other images for the evaluation: --val.") from error
    if cfg.train.max_iter * train.total_batch_size <= num_images * max(1, train.dataset.get("views", 0)):
        # no view of an image is seen twice, so a cache is useless, and the number of views need not be limited
        cfg.model.feature_cache, train.dataset.views = "", 0
    return cfg
