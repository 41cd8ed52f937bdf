"""A config for one's own data: data sets, classes, schedule and learning rate, by rules that are said in words."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from lift_det.data import CocoCheck, DatasetError, check_coco, load_own_coco, parse_dataset, write_own_coco

#: images that the shipped configs' schedules count as an epoch
_EPOCH_IMAGES = {"coco_2017_train": 118_000, "lift_det_synthetic_train": 1000, "coco_2017_train_overfit8": 8}
_MIN_ITERATIONS = 1000


@dataclass(frozen=True)
class OwnCoco:
    """A data set in COCO's format, checked.

    Attributes:
        name: under which it is registered: the path of ``json_file``.
        json_file: the annotations.
        image_root: the folder that their file names start from.
        categories: names by the file's category ids.
        num_images: with an object to learn.
        masks: ``"none"``, ``"polygon"``, or ``"bitmask"`` where any mask is run-length encoded.
    """

    name: str
    json_file: str
    image_root: str
    categories: Mapping[int, str]
    num_images: int
    masks: str


def check_own_coco(
    dataset: str,
    folder: str | os.PathLike,
    categories: Mapping[int, str] | None = None,
    say: Callable[[str], object] = print,
) -> CocoCheck:
    """Checks a data set and writes the findings.

    Args:
        dataset: ``"annotations.json:images/"``.
        folder: for ``findings.txt`` with every finding.
        categories: what the data set has to have, by id: those of the training set.
        say: is given the page on what was found.

    Raises:
        DatasetError: it cannot be used as it is; the page says why.
    """
    json_file, image_root = parse_dataset(dataset)
    check = check_coco(json_file, image_root, thing_classes=categories, progress=True)
    os.makedirs(folder, exist_ok=True)
    findings = os.path.join(folder, "findings.txt")
    check.write_findings(findings)
    say(check.page(findings))
    if check.errors:
        raise DatasetError(
            f"'{json_file}' cannot be used as it is: see '{findings}' ({len(check.errors)} errors). Mend "
            "them in the file and give the same command again."
        )
    return check


def own_coco(check: CocoCheck, folder: str | os.PathLike) -> OwnCoco:
    """Writes what of a checked data set can be used to ``folder``; returns what a config states of it."""
    json_file = os.path.abspath(write_own_coco(check, folder))
    return OwnCoco(
        name=json_file,  # as the registered name: there may be many my_val.json, which one process compares
        json_file=json_file,
        image_root=os.path.abspath(check.image_root),
        categories=check.categories,
        num_images=check.num_annotated_images,
        masks=check.masks,
    )


def hold_out(check: CocoCheck, every: int = 10) -> tuple[CocoCheck, CocoCheck]:
    """Parts a data set without one to evaluate on: every so many-th image, in the order of the file, is for that.

    Returns:
        What is left to train on, and what is held out; each with all categories.

    Raises:
        DatasetError: fewer images than ``every``.
    """
    images = check.cleaned["images"]
    if len(images) < every:
        raise DatasetError(
            f"'{check.json_file}' has {len(images)} usable images, too few to hold every {every}th out for the "
            "evaluation: name a data set for it (--val)."
        )
    held = {image["id"] for image in images[every - 1 :: every]}
    stem, suffix = os.path.splitext(check.json_file)
    return (
        _part(check, f"{stem}_kept{suffix}", lambda image_id: image_id not in held),
        _part(check, f"{stem}_held_out{suffix}", lambda image_id: image_id in held),
    )


def _part(check: CocoCheck, json_file: str, belongs: Callable[[int], bool]) -> CocoCheck:
    cleaned = {
        **check.cleaned,
        "images": [image for image in check.cleaned["images"] if belongs(image["id"])],
        "annotations": [a for a in check.cleaned["annotations"] if belongs(a["image_id"])],
    }
    return replace(check, json_file=json_file, cleaned=cleaned)


def use_dataset(cfg: DictConfig, split: str, data: OwnCoco) -> None:
    """Puts a data set in the place of the one that a config reads; the config then holds all that it takes.

    Args:
        cfg: a detector's LazyConfig; changed.
        split: ``"train"`` or ``"test"``.
        data: the data set.
    """
    loader = cfg.dataloader[split]
    loader.dataset = LazyCall(load_own_coco)(
        names=data.name,
        json_file=data.json_file,
        image_root=data.image_root,
        thing_classes=[data.categories[id_] for id_ in sorted(data.categories)],
        category_ids=sorted(data.categories),
        filter_empty=split == "train",
    )


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
    loader, old_iterations = cfg.dataloader.train, cfg.train.max_iter
    old_batch = loader.total_batch_size
    batch_size = old_batch if batch_size is None else batch_size
    lines = []

    if iterations is None:
        if epochs is None:
            of = _epoch_images(cfg)
            epochs = old_iterations * old_batch / of
            said = f"{epochs:g} epochs as the config ({old_iterations} iterations of {old_batch} in {of} images)"
            least = min(_MIN_ITERATIONS, old_iterations)
        else:
            said, least = f"{epochs:g} epochs", 1
        iterations = math.ceil(epochs * num_images / batch_size)
        lines.append(f"{said} of {num_images} images at batch {batch_size}: {iterations} iterations")
        if iterations < least:
            iterations = least
            epochs = iterations * batch_size / num_images
            lines.append(f"at least {least} iterations, for heads that start anew: {epochs:g} epochs")
    else:
        lines.append(f"{iterations} iterations of {batch_size} images: {iterations * batch_size / num_images:g} epochs")
    loader.total_batch_size = batch_size
    cfg.train.max_iter = iterations

    old_rate = cfg.optimizer.lr
    cfg.optimizer.lr = old_rate * batch_size / old_batch if learning_rate is None else learning_rate
    lines.append(
        f"learning rate {cfg.optimizer.lr:g}"
        + (f" = {old_rate:g} × {batch_size} / {old_batch} (linear in the batch)" if learning_rate is None else "")
    )

    multiplier = cfg.lr_multiplier
    scheduler = multiplier.get("scheduler", {})
    if "milestones" in scheduler:
        steps = (round(step * iterations / old_iterations) for step in scheduler.milestones)
        # in a very short training steps fall together, or behind its end
        after = {step: value for step, value in zip(steps, scheduler["values"][1:], strict=True) if step < iterations}
        scheduler.milestones, scheduler["values"] = list(after), [scheduler["values"][0], *after.values()]
        lines.append(f"steps of the learning rate at {list(scheduler.milestones)}")
    if scheduler.get("num_updates") is not None:
        scheduler.num_updates = iterations
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
    """How many images the config's own training set has."""
    names = cfg.dataloader.train.dataset.get("names")
    if isinstance(names, str):
        if names in _EPOCH_IMAGES:
            return _EPOCH_IMAGES[names]
        if names in DatasetCatalog:
            return len(DatasetCatalog.get(names))
    raise ValueError(
        f"The length of an epoch of this config's own data ({names}) cannot be told: say epochs or iterations."
    )
