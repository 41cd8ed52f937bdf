"""Fits a detector's config to your own data: classes, schedule and learning rate, by rules that are printed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

import torch
from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog
from detectron2.utils.registry import locate
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf

from lift_det import config
from lift_det.modeling.upsamplers.files import UpsamplerFile
from lift_det.visualization import PredictionPictures

from ..hooks import BestCheckpoint
from ..progress import ProgressBar
from ..trainer import Trainer
from .own_data import OwnCoco, check_own_coco, hold_out, own_coco, use_dataset

_MIN_ITERATIONS = 1000
#: images of an epoch, for configs that state iterations, as all did until November 2026
_EPOCH_IMAGES = {"coco_2017_train": 118_000, "lift_det_synthetic_train": 1000, "coco_2017_train_overfit8": 8}


def fit_config(
    cfg: DictConfig,
    dataset: str,
    val: str | None = None,
    *,
    data_folder: str | os.PathLike,
    weights: str | None = None,
    lift: str | os.PathLike | None = None,
    device: str = "cuda",
    batch_size: int | None = None,
    epochs: float | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Makes a detector's config one for one's own data, ready for :func:`lift_det.engine.do_train`.

    Besides data, classes (:func:`fit_classes`) and schedule (:func:`fit_schedule`) it states the device, a precision
    for it, all options of the trainer, and the hooks: the best checkpoint, pictures in TensorBoard, a progress bar.

    Args:
        cfg: a detector's LazyConfig; changed.
        dataset: what to train on, ``"annotations.json:images/"``.
        val: what to evaluate on; None holds every 10th image of ``dataset`` out.
        data_folder: for what is found in the annotations, and what of them is used.
        weights: to start from, a path or a URL; None are the config's.
        lift: a trained LiFT's file, to start from; None is the config's.
        device: ``"cuda"`` or ``"cpu"``.
        batch_size, epochs, iterations, learning_rate: see :func:`fit_schedule`.
        say: is given the pages on the data, and the rules with their numbers.

    Raises:
        DatasetError: the data cannot be used as it is.
        CheckpointError: the file of ``lift`` is missing, or holds no LiFT.
        ValueError: the config is no detector's, it has no place for a LiFT, or a number is wrong.
    """
    if lift is not None:
        place = OmegaConf.select(cfg, "model.backbone.lift")
        if place is None or "checkpoint" not in place:
            raise ValueError("This config's model has no LiFT (model.backbone.lift.checkpoint) that a file could fill.")
        UpsamplerFile(lift)  # what cannot be read is an error now, not when the model is built
        place.checkpoint = os.path.abspath(lift)
    # in folders of their own: two annotation files may have one name
    train_folder, val_folder = (os.path.join(data_folder, split) for split in ("train", "val"))
    train_check = check_own_coco(dataset, train_folder, say=say)
    said = []
    if val is None:
        train_check, val_check = hold_out(train_check)
        said.append(f"{val_check.num_images} images, every 10th, are held out for the evaluation")
    else:
        val_check = check_own_coco(val, val_folder, train_check.categories, say)
    train_data, val_data = own_coco(train_check, train_folder), own_coco(val_check, val_folder)

    if weights is not None:
        cfg.train.init_checkpoint = weights if "://" in weights else os.path.abspath(weights)
    said += fit_classes(cfg, train_data)
    said += fit_schedule(
        cfg,
        train_data.num_images,
        batch_size=batch_size,
        epochs=epochs,
        iterations=iterations,
        learning_rate=learning_rate,
    )
    use_dataset(cfg, "train", train_data)
    use_dataset(cfg, "test", val_data)
    _state_trainer(cfg, device)
    _state_evaluation(
        cfg, with_masks=cfg.model.get("roi_heads", {}).get("mask_head") is not None and val_data.masks != "none"
    )
    say("\n".join(["Fitted to the data:", *(f"  {line}" for line in said)]))


def _state_trainer(cfg: DictConfig, device: str) -> None:
    precision = "float32"
    if cfg.train.amp.enabled and device != "cpu":
        precision = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    cfg.train.device = device
    cfg.train.amp.enabled = precision != "float32"
    if "trainer" not in cfg.train:
        # all of its options, so that each can be overridden
        cfg.train.trainer = LazyCall(Trainer)(
            accumulate=1, clip_norm=None, clip_value=None, precision=precision, ema_decay=None
        )


def _state_evaluation(cfg: DictConfig, with_masks: bool) -> None:
    evaluator = cfg.dataloader.evaluator
    evaluator.output_dir = "${train.output_dir}/inference"
    # stated, because an evaluator that is given no prediction cannot tell
    evaluator.tasks = ["bbox", "segm"] if with_masks else ["bbox"]
    # a config that was fitted before has these hooks already
    own = (BestCheckpoint, ProgressBar, PredictionPictures)
    cfg.train.hooks = [
        *(hook for hook in cfg.train.get("hooks", []) if _class_of(hook) not in own),
        LazyCall(BestCheckpoint)(metric="segm/AP" if with_masks else "bbox/AP"),
        LazyCall(PredictionPictures)(
            dataset="${dataloader.test.dataset}",
            dataset_name="${dataloader.test.dataset.names}",
            mapper="${dataloader.test.mapper}",
            period="${train.eval_period}",
        ),
        LazyCall(ProgressBar)(),
    ]


def _class_of(hook: DictConfig) -> type:
    return locate(hook._target_) if isinstance(hook._target_, str) else hook._target_


def fit_classes(cfg: DictConfig, data: OwnCoco) -> list[str]:
    """Sets the class count everywhere in a model, and leaves the masks out if the data has none.

    A checkpoint of other classes then fills the heads but for their last layers.

    Args:
        cfg: a detector's LazyConfig; changed.
        data: the training set.

    Returns:
        What was done, in words.

    Raises:
        ValueError: the model has no class count.
    """
    count = len(data.categories)
    places = list(_class_counts(cfg.model, "model"))
    if not places:
        raise ValueError("This config's model states no num_classes: it is no detector whose classes can be set.")
    before = set()
    for path in places:
        before.add(OmegaConf.select(cfg, path))
        OmegaConf.update(cfg, path, count)
    lines = [f"{count} classes ({', '.join(places)})"]
    if before != {count} and "allow_partial" in cfg.model and cfg.train.init_checkpoint:
        cfg.model.allow_partial = sorted({*cfg.model.allow_partial, "roi_heads"})
        lines.append("layers of other classes in the checkpoint are left out (model.allow_partial=[roi_heads])")

    heads, mapper = cfg.model.get("roi_heads", {}), cfg.dataloader.train.mapper
    if data.masks == "none" and heads.get("mask_in_features") is not None:
        heads.mask_in_features = None
        for name in ("mask_pooler", "mask_head"):
            heads.pop(name)
        mapper.use_instance_mask = mapper.recompute_boxes = False
        lines.append("no mask head: the annotations have no masks")
    elif data.masks == "bitmask":
        mapper.instance_mask_format = "bitmask"
        lines.append("masks as bitmasks: some are run-length encoded (mapper.instance_mask_format=bitmask)")
    return lines


def fit_schedule(
    cfg: DictConfig,
    num_images: int,
    *,
    batch_size: int | None = None,
    epochs: float | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
) -> list[str]:
    """Scales schedule and learning rate to a batch size and a number of images.

    - Learning rate: the config's, times the batch size over the config's (detectron2's linear rule).
    - Length: as many epochs as the config's, but at least 1,000 iterations (or the config's own, if those are fewer):
      new heads need some however few images there are. Steps of the learning rate keep their shares of it.
    - Warm-up: as many iterations as the config's, at most a tenth of all.
    - Evaluation and checkpoints: as often as in the config, at least ten times; two checkpoints are kept.

    Args:
        cfg: a detector's LazyConfig that still has its own training set; changed.
        num_images: in an epoch.
        batch_size: images in an iteration over all processes; None is the config's.
        epochs, iterations: the length instead, one of them.
        learning_rate: instead of the rule's.

    Returns:
        The rule with its numbers, in words.

    Raises:
        ValueError: both epochs and iterations, one that is not positive, or a config whose epochs cannot be counted.
    """
    for name, value in (("batch_size", batch_size), ("epochs", epochs), ("iterations", iterations)):
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value}: expected a positive number.")
    if epochs is not None and iterations is not None:
        raise ValueError(f"epochs={epochs} and iterations={iterations}: the length is said by one of them.")
    # train.max_iter of the shipped configs follows from train.epochs, and goes on doing so unless iterations are given
    from_epochs = OmegaConf.is_interpolation(cfg.train, "max_iter")
    keep_epochs = from_epochs and iterations is None
    loader, old_iterations = cfg.dataloader.train, cfg.train.max_iter
    old_batch = loader.total_batch_size
    batch_size = old_batch if batch_size is None else batch_size
    lines = []

    if iterations is None:
        if epochs is None:
            of = cfg.train.epoch_images if from_epochs else _epoch_images(cfg)
            epochs = cfg.train.epochs if from_epochs else old_iterations * old_batch / of
            said = f"{epochs:g} epochs as the config ({old_iterations} iterations of {old_batch} in {of} images)"
            least = min(_MIN_ITERATIONS, old_iterations)
        else:
            said, least = f"{epochs:g} epochs", 1
        iterations = config.iterations(epochs, num_images, batch_size)
        lines.append(f"{said} of {num_images} images at batch {batch_size}: {iterations} iterations")
        if iterations < least:
            iterations = least
            epochs = iterations * batch_size / num_images
            lines.append(f"at least {least} iterations, for heads that start anew: {epochs:g} epochs")
    else:
        lines.append(f"{iterations} iterations of {batch_size} images: {iterations * batch_size / num_images:g} epochs")
    loader.total_batch_size = batch_size
    if keep_epochs:
        cfg.train.update(epochs=epochs, epoch_images=num_images)
    else:
        config.state_iterations(cfg, iterations)

    old_rate = cfg.optimizer.lr
    cfg.optimizer.lr = old_rate * batch_size / old_batch if learning_rate is None else learning_rate
    lines.append(
        f"learning rate {cfg.optimizer.lr:g}"
        + (f" = {old_rate:g} × {batch_size} / {old_batch} (linear in the batch)" if learning_rate is None else "")
    )

    multiplier = cfg.lr_multiplier
    scheduler = multiplier.get("scheduler", {})
    if "milestones" in scheduler:  # they are shares of the training, in units of num_updates
        units = scheduler.get("num_updates") or scheduler.milestones[-1]
        shares = [step / units - ParamScheduler.WHERE_EPSILON for step in scheduler.milestones]
        steps = [math.ceil(share * iterations) for share in shares]
        steps = [step for step in steps if step < iterations]  # a short training ends before the others
        lines.append(f"steps of the learning rate at {steps}" if steps else "no steps of the learning rate")
    if "warmup_length" in multiplier:
        warmup = min(round(multiplier.warmup_length * old_iterations), iterations // 10)
        multiplier.warmup_length = warmup / iterations
        lines.append(f"warm-up of {warmup} iterations")

    period = max(1, iterations // 10)
    cfg.train.eval_period = min(cfg.train.eval_period or period, period)
    cfg.train.checkpointer.period = min(cfg.train.checkpointer.period, period)
    cfg.train.checkpointer.max_to_keep = 2
    cfg.train.log_period = min(cfg.train.log_period, period)
    lines.append(
        f"evaluation every {cfg.train.eval_period} iterations, a checkpoint every {cfg.train.checkpointer.period}"
    )
    return lines


def _class_counts(node: DictConfig | ListConfig, path: str) -> Iterator[str]:
    """Paths of every ``num_classes`` that is a number of its own; the others refer to one of these."""
    keys = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)):
            if not child._is_none():
                yield from _class_counts(child, f"{path}.{key}")
        elif key == "num_classes" and not OmegaConf.is_interpolation(node, key):
            yield f"{path}.{key}"


def _epoch_images(cfg: DictConfig) -> int:
    """How many images the training set of a config has that states its length in iterations."""
    names = cfg.dataloader.train.dataset.get("names")
    if names in _EPOCH_IMAGES:
        return _EPOCH_IMAGES[names]
    if isinstance(names, str) and names in DatasetCatalog:
        return len(DatasetCatalog.get(names))
    raise ValueError(
        f"The length of an epoch of this config's own data ({names}) is not known: give epochs or iterations."
    )
