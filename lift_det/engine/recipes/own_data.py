"""Own data sets in COCO's format: checked, split, and put into a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from detectron2.config import LazyCall
from omegaconf import DictConfig

from lift_det.data import CocoCheck, DatasetError, check_coco, load_own_coco, parse_dataset, write_own_coco


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
    """Splits a data set: every ``every``-th image, in the order of the file, is held out for the evaluation.

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
