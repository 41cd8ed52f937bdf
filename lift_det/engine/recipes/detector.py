"""Fits a detector's config to a dataset in COCO's format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from detectron2.config import LazyCall
from omegaconf import DictConfig, ListConfig, OmegaConf

from lift_det import config
from lift_det.data import CocoCheck, DatasetError, check_coco, load_own_coco, parse_dataset, write_own_coco
from lift_det.modeling.upsamplers.files import UpsamplerFile
from lift_det.visualization import PredictionPictures

from ..hooks import BestCheckpoint, ProgressBar
from ..trainer import Trainer

_MIN_ITERATIONS = 1000


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
    log: Callable[[str], object] = print,
) -> None:
    """Fits a detector's config to a dataset, for :func:`lift_det.engine.do_train`.

    Sets the data, the classes (:func:`fit_classes`), the schedule (:func:`fit_schedule`), device, precision, trainer,
    and hooks for the best checkpoint, pictures in TensorBoard and a progress bar.

    Args:
        cfg: a detector's LazyConfig; modified in place.
        dataset: training set, ``"annotations.json:images/"``.
        val: evaluation set. By default every 10th image of ``dataset`` is held out.
        data_folder: receives the findings about the annotations, and their usable part.
        weights: checkpoint to start from, a path or URL. By default that of the config.
        lift: file of a trained LiFT. By default that of the config.
        device: ``"cuda"`` or ``"cpu"``.
        batch_size, epochs, iterations, learning_rate: see :func:`fit_schedule`.
        log: called with text about the data and the settings.

    Raises:
        DatasetError: the dataset has errors.
        CheckpointError: the file ``lift`` is missing or is not a LiFT.
        ValueError: the config is not a detector's, has no LiFT, or a number is out of range.
    """
    if lift is not None:
        lift_cfg = OmegaConf.select(cfg, "model.backbone.lift")
        if lift_cfg is None or "checkpoint" not in lift_cfg:
            raise ValueError("This config's model has no LiFT that could be loaded (model.backbone.lift.checkpoint).")
        UpsamplerFile(lift)  # raises early if the file cannot be read
        lift_cfg.checkpoint = os.path.abspath(lift)
    if weights is not None:
        cfg.train.init_checkpoint = weights if "://" in weights else os.path.abspath(weights)
    # in separate folders, because both annotation files may have the same name
    train_folder, val_folder = (os.path.join(data_folder, split) for split in ("train", "val"))
    train_check = check_own_coco(dataset, train_folder, log=log)
    lines = []
    if val is None:
        train_check, val_check = hold_out(train_check)
        lines.append(f"{val_check.num_images} images, every 10th, held out for the evaluation")
    else:
        val_check = check_own_coco(val, val_folder, train_check.categories, log)
    train_data, val_data = own_coco(train_check, train_folder), own_coco(val_check, val_folder)
    lines += fit_classes(cfg, train_data)
    lines += fit_schedule(cfg, train_data.num_annotated_images, batch_size, epochs, iterations, learning_rate)
    use_dataset(cfg, "train", train_data)
    use_dataset(cfg, "test", val_data)
    _set_trainer(cfg, device)
    has_masks = cfg.model.get("roi_heads", {}).get("mask_head") is not None and val_data.masks != "none"
    _set_evaluation(cfg, has_masks)
    log("\n".join(["Fitted to the data:", *(f"  {line}" for line in lines)]))


def _set_trainer(cfg: DictConfig, device: str) -> None:
    precision = "float32"
    if cfg.train.amp.enabled and device != "cpu":
        precision = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    cfg.train.device = device
    cfg.train.amp.enabled = precision != "float32"
    if "trainer" not in cfg.train:
        # all options are set, so that each can be overridden
        cfg.train.trainer = LazyCall(Trainer)(
            accumulate=1, clip_norm=None, clip_value=None, precision=precision, ema_decay=None
        )


def _set_evaluation(cfg: DictConfig, has_masks: bool) -> None:
    cfg.dataloader.evaluator.output_dir = "${train.output_dir}/inference"
    # set explicitly, because the evaluator cannot infer tasks if there are no predictions
    cfg.dataloader.evaluator.tasks = ["bbox", "segm"] if has_masks else ["bbox"]
    own = (BestCheckpoint, ProgressBar, PredictionPictures)  # replaced if the config was fitted before
    cfg.train.hooks = [
        *(hook for hook in cfg.train.get("hooks", []) if config.locate_target(hook) not in own),
        LazyCall(BestCheckpoint)(metric="segm/AP" if has_masks else "bbox/AP"),
        LazyCall(PredictionPictures)(
            dataset="${dataloader.test.dataset}",
            dataset_name="${dataloader.test.dataset.names}",
            mapper="${dataloader.test.mapper}",
            period="${train.eval_period}",
        ),
        LazyCall(ProgressBar)(),
    ]


def fit_classes(cfg: DictConfig, data: CocoCheck) -> list[str]:
    """Sets the number of classes in a detector's LazyConfig, and removes the mask head if the data has no masks.

    From a checkpoint with other classes, the last layers of the heads are not loaded.

    Returns:
        Lines that describe the changes.

    Raises:
        ValueError: the model has no ``num_classes``.
    """
    count = len(data.categories)
    keys = list(_class_count_keys(cfg.model, "model"))
    if not keys:
        raise ValueError("This config's model has no num_classes: expected a detector.")
    counts_before = {OmegaConf.select(cfg, key) for key in keys}
    for key in keys:
        OmegaConf.update(cfg, key, count)
    lines = [f"{count} classes ({', '.join(keys)})"]
    if counts_before != {count} and "ignore_mismatch" in cfg.model and cfg.train.init_checkpoint:
        cfg.model.ignore_mismatch = sorted({*cfg.model.ignore_mismatch, "roi_heads"})
        lines.append("the checkpoint's layers for other classes are not loaded (model.ignore_mismatch=[roi_heads])")

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


def _class_count_keys(node: DictConfig | ListConfig, path: str) -> Iterator[str]:
    """Yields the key of each ``num_classes`` that is a number and not an interpolation."""
    for key in node.keys() if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)):
            if not child._is_none():
                yield from _class_count_keys(child, f"{path}.{key}")
        elif key == "num_classes" and not OmegaConf.is_interpolation(node, key):
            yield f"{path}.{key}"


def fit_schedule(
    cfg: DictConfig,
    num_images: int,
    batch_size: int | None = None,
    epochs: float | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
) -> list[str]:
    """Scales the schedule and the learning rate of a detector's LazyConfig to a batch size and a number of images.

    - Learning rate: proportional to the batch size.
    - Length: the epochs of the config, but at least 1,000 iterations (or those of the config, if fewer), because new
      heads need them. Learning-rate steps stay at the same fraction of the training.
    - Warm-up: the iterations of the config, but at most a tenth of the training.
    - Evaluations and checkpoints: the periods of the config, but at least ten of each. Two checkpoints are kept.

    Args:
        cfg: modified in place.
        num_images: images in an epoch.
        batch_size: images in an iteration, over all processes. By default that of the config.
        epochs, iterations: length of the training; at most one of them.
        learning_rate: used instead of the scaled one.

    Returns:
        Lines that describe the changes.

    Raises:
        ValueError: both epochs and iterations are given, a number is not positive, or the config has no epochs.
    """
    for name, value in (("batch_size", batch_size), ("epochs", epochs), ("iterations", iterations)):
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value}: expected a positive number.")
    if epochs is not None and iterations is not None:
        raise ValueError(f"epochs={epochs} and iterations={iterations}: give only one of them.")
    old_iterations, old_batch, old_rate = cfg.train.max_iter, cfg.dataloader.train.total_batch_size, cfg.optimizer.lr
    batch_size = batch_size or old_batch
    # train.max_iter of the shipped configs is computed from train.epochs
    has_epochs = OmegaConf.is_interpolation(cfg.train, "max_iter")
    if iterations is None and epochs is None:
        if not has_epochs:
            raise ValueError("The config has no train.epochs: give epochs or iterations.")
        least = min(_MIN_ITERATIONS, old_iterations)
        epochs = max(cfg.train.epochs, least * batch_size / num_images)
    cfg.dataloader.train.total_batch_size = batch_size
    if iterations is None and has_epochs:
        cfg.train.update(epochs=epochs, epoch_images=num_images)
        iterations = cfg.train.max_iter
    else:
        iterations = iterations or config.iterations(epochs, num_images, batch_size)
        config.state_iterations(cfg, iterations)
    rule = ""
    if learning_rate is None:
        learning_rate = old_rate * batch_size / old_batch
        rule = f" = {old_rate:g} × {batch_size} / {old_batch} (linear in the batch)"
    cfg.optimizer.lr = learning_rate
    lines = [
        f"{iterations * batch_size / num_images:g} epochs of {num_images} images at batch {batch_size}: "
        f"{iterations} iterations",
        f"learning rate {learning_rate:g}{rule}",
    ]
    if "warmup_length" in cfg.lr_multiplier:
        warmup = min(round(cfg.lr_multiplier.warmup_length * old_iterations), iterations // 10)
        cfg.lr_multiplier.warmup_length = warmup / iterations
        lines.append(f"warm-up of {warmup} iterations")
    period = max(1, iterations // 10)
    cfg.train.eval_period = min(cfg.train.eval_period or period, period)
    cfg.train.checkpointer.update(period=min(cfg.train.checkpointer.period, period), max_to_keep=2)
    cfg.train.log_period = min(cfg.train.log_period, period)
    lines.append(
        f"evaluation every {cfg.train.eval_period} iterations, a checkpoint every {cfg.train.checkpointer.period}"
    )
    return lines


def check_own_coco(
    dataset: str,
    folder: str | os.PathLike,
    categories: Mapping[int, str] | None = None,
    log: Callable[[str], object] = print,
) -> CocoCheck:
    """Checks a dataset, and writes the findings to a folder.

    Args:
        dataset: ``"annotations.json:images/"``.
        folder: receives ``findings.txt``.
        categories: names by id that the dataset must have.
        log: called with a summary of the findings.

    Raises:
        DatasetError: the dataset has errors, which the summary names.
    """
    json_file, image_root = parse_dataset(dataset)
    check = check_coco(json_file, image_root, thing_classes=categories, progress=True)
    os.makedirs(folder, exist_ok=True)
    findings = os.path.join(folder, "findings.txt")
    check.write_findings(findings)
    log(check.page(findings))
    if check.errors:
        raise DatasetError(
            f"'{json_file}' has {len(check.errors)} errors (see '{findings}'). Correct them, then run the same command "
            "again."
        )
    return check


def own_coco(check: CocoCheck, folder: str | os.PathLike) -> CocoCheck:
    """Writes the usable part of a checked dataset to a folder. Returns the check with the path of that file."""
    json_file = os.path.abspath(write_own_coco(check, folder))
    return replace(check, json_file=json_file, image_root=os.path.abspath(check.image_root))


def hold_out(check: CocoCheck, every: int = 10) -> tuple[CocoCheck, CocoCheck]:
    """Splits a dataset: every ``every``-th image is held out. Returns the rest and the held-out part."""
    images = check.cleaned["images"]
    if len(images) < every:
        raise DatasetError(
            f"'{check.json_file}' has {len(images)} usable images, too few to hold out every {every}th for the "
            "evaluation: name a dataset for it (--val)."
        )
    held_out = {image["id"] for image in images[every - 1 :: every]}
    stem, suffix = os.path.splitext(check.json_file)
    parts = []
    for name, is_held_out in (("kept", False), ("held_out", True)):
        cleaned = {
            **check.cleaned,
            "images": [image for image in images if (image["id"] in held_out) is is_held_out],
            "annotations": [a for a in check.cleaned["annotations"] if (a["image_id"] in held_out) is is_held_out],
        }
        parts.append(replace(check, json_file=f"{stem}_{name}{suffix}", cleaned=cleaned))
    return parts[0], parts[1]


def use_dataset(cfg: DictConfig, split: str, data: CocoCheck) -> None:
    """Sets the ``"train"`` or ``"test"`` dataset of a detector's LazyConfig. It need not be registered."""
    cfg.dataloader[split].dataset = LazyCall(load_own_coco)(
        names=data.json_file,  # unique: a process may use several files called my_val.json
        json_file=data.json_file,
        image_root=data.image_root,
        thing_classes=[data.categories[id_] for id_ in sorted(data.categories)],
        category_ids=sorted(data.categories),
        filter_empty=split == "train",
    )
