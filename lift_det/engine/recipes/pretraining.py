"""A config of LiFT's training for any pretrained ViT and folders of images."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import LazyCall, instantiate
from omegaconf import DictConfig

from lift_det import config
from lift_det.modeling import NamedViT

from ..progress import ProgressBar

#: without images for the evaluation, one of so many is held out
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
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    overrides: Sequence[str] = (),
) -> DictConfig:
    """A config that trains LiFT and evaluates it once, at the end, ready for :func:`lift_det.engine.do_train`.

    It is ``common/lift_training.py``, on a CPU ``LiFT/lift_vits14_cpu.py``, with the ViT, the images and these options.

    Args:
        vit: of :func:`lift_det.modeling.find_vit`.
        images: folders, at any depth.
        output: for checkpoints, metrics and ``lift.safetensors``.
        val: folders to evaluate on; None holds out every 20th image.
        device: ``"cuda"`` or ``"cpu"``.
        layer, facet: which of the ViT's features, see :class:`lift_det.FeatureExtractor`.
        steps: training iterations; None is the config's.
        batch_size: images in a step, over all processes; None is the config's.
        image_size: pixels, a multiple of four patches; None is 448, or the next such multiple.
        overrides: ``key=value``, applied last.

    Raises:
        ValueError: a number is wrong, or there are too few images.
        lift_det.config.OverrideError: an override cannot be applied.
    """
    unit = 4 * vit.patch_size
    size = 448 + -448 % unit if image_size is None else image_size
    if size % unit:
        raise ValueError(
            f"image_size={size}: with patches of {vit.patch_size} pixels it has to be a multiple of {unit}."
        )
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: expected a positive number.")
    cfg = config.load("LiFT/lift_vits14_cpu.py" if device == "cpu" else "common/lift_training.py")
    cfg.model.net.update(vit.arguments())
    cfg.model.update(pixel_mean=vit.pixel_mean, pixel_std=vit.pixel_std, layer=layer, facet=facet)
    for split, folders in (("train", images), ("test", val or images)):
        dataset = cfg.dataloader[split].dataset
        dataset.root = [os.path.abspath(folder) for folder in folders]
        dataset.image_size = size
        if val is None:
            dataset.holdout = _HOLDOUT
    train = cfg.dataloader.train
    cfg.train.update(output_dir=os.fspath(output), device=device)
    config.state_iterations(cfg, steps or cfg.train.max_iter)
    if batch_size is not None:
        train.total_batch_size = batch_size
    cfg.train.hooks = [LazyCall(ProgressBar)()]
    cfg = config.apply_overrides(cfg, overrides)
    if "epochs" in cfg.train:
        raise ValueError("train.epochs has no effect here: the length is stated in steps (--steps, train.max_iter).")
    cfg.train.output_dir = os.fspath(output)  # where lift.safetensors is read afterwards
    cfg.train.eval_period = cfg.train.max_iter

    train = cfg.dataloader.train
    try:
        count = len(instantiate(train.dataset))
    except ValueError as error:
        raise ValueError(f"{error}\nWith few images name others for the evaluation: --val.") from error
    if cfg.train.max_iter * train.total_batch_size <= count * max(1, train.dataset.get("views", 0)):
        # no version of an image would come a second time: nothing to keep, and no reason to limit them
        cfg.model.feature_cache, train.dataset.views = "", 0
    return cfg
