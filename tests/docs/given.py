"""What the documentation's commands find: data sets of drawn images, photographs, a video, and weights that are random.

Files of weights have the names, places and formats that a download would give them, so that commands run as they are
printed and nothing is fetched. They are written when a command is about to need them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import timm
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from omegaconf import DictConfig, ListConfig
from safetensors.torch import save_file

from lift_det import LiFTPlus, config, save_lift
from lift_det.data import write_synthetic_coco
from lift_det.data.register import COCO_TRAIN_OVERFIT8, COCO_VAL_FIRST2

NUM_TRAIN, NUM_VAL, IMAGE_SIZE = 16, 24, 128
#: files of a ViT's weights that commands name -> timm's name of such a ViT
VIT_FILES = {
    "dino_deitsmall16_pretrain.pth": "vit_small_patch16_224.dino",
    "weights/vit_small_patch14_fp16.safetensors": "vit_small_patch14_dinov2.lvd142m",
}
#: a training that a command compares with that of a command before it -> that one
COPIES = {"output/other": "output/mine"}
#: of Hugging Face's hub; any will do
COMMIT = "0" * 40


def write_data(folder: Path) -> None:
    """Everything but weights: ``datasets/`` in the layouts that configs expect, and a reader's own files."""
    datasets = folder / "datasets"
    drawn = write_synthetic_coco(datasets, num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=IMAGE_SIZE)
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    coco = [{"id": c["id"], "name": c["name"], "supercategory": "thing"} for c in things]
    own = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "bird", "fish", "frog"), start=1)]
    files_of_own = {"train": ("my_train.json",), "val": ("my_val.json", "other.json")}
    # those that registered subsets name come first
    ids = {
        "train": [*COCO_TRAIN_OVERFIT8, *range(700000, 700000 + NUM_TRAIN)],
        "val": [*COCO_VAL_FIRST2, *range(800000, 800000 + NUM_VAL)],
    }
    for split in ("train", "val"):
        content = json.loads((drawn / "annotations" / f"instances_{split}.json").read_text())
        _write_coco(content, drawn / split, datasets / "coco", f"{split}2017", coco, ids[split])
        shutil.copytree(datasets / "coco" / f"{split}2017", datasets / "imagenet_mini" / split / "n01440764")
        _write_coco(content, drawn / split, folder, "images", own, ids[split])
        for name in files_of_own[split]:
            shutil.copy(folder / "annotations" / "instances_images.json", folder / name)
    shutil.rmtree(folder / "annotations")
    photos = sorted((datasets / "coco" / "val2017").iterdir())
    shutil.copytree(photos[0].parent, folder / "photos")
    large = cv2.resize(cv2.imread(str(photos[0])), (480, 360))
    cv2.imwrite(str(folder / "photo.jpg"), large)
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (IMAGE_SIZE, IMAGE_SIZE))
    for photo in photos[:3]:
        video.write(cv2.imread(str(photo)))
    video.release()


def _write_coco(
    content: dict[str, Any],
    source: Path,
    root: Path,
    name: str,
    categories: Sequence[dict[str, Any]],
    ids: Sequence[int],
) -> None:
    """A drawn split as ``root/annotations/instances_<name>.json`` and ``root/<name>/``, with other classes and ids."""
    images, new_ids = [], {}
    for image, new_id in zip(content["images"], ids, strict=False):
        new_ids[image["id"]] = new_id
        images.append({**image, "id": new_id, "file_name": f"{new_id:012d}.jpg"})
        (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(source / image["file_name"], root / name / f"{new_id:012d}.jpg")
    annotations = [
        # the first five classes in turn
        {**a, "image_id": new_ids[a["image_id"]], "category_id": categories[i % 5]["id"]}
        for i, a in enumerate(content["annotations"])
    ]
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{name}.json").write_text(
        json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": list(categories)})
    )


def write_weights(folder: Path, argv: Sequence[str]) -> None:
    """The weights and trainings that a command is going to read and that are not there.

    Args:
        folder: of the sandbox.
        argv: the program and its arguments, as the shell has expanded and rules.shorten() has changed them.
    """
    for copy, original in COPIES.items():
        if copy in argv and not (folder / copy).exists() and (folder / original).exists():
            shutil.copytree(folder / original, folder / copy)
    words = [part for word in argv for part in word.split("=")]
    named = {option: words[i + 1] for i, option in enumerate(words[:-1])}
    for name in words:
        if timm.is_model_pretrained(name) and "." in name:
            _write_hub(folder, name)
    cfg = _config(folder, argv, named)
    for net in _vits(cfg):
        if net.get("pretrained"):
            _write_hub(folder, net["name"])
        elif net.get("checkpoint"):
            _write_vit(folder / net["checkpoint"], net["name"])
    for name in set(words) & set(VIT_FILES):
        _write_vit(folder / name, VIT_FILES[name])
    start = _start(cfg)
    if "ImageNetPretrained/MAE" in start:
        _write_mae(folder, start, cfg)
    for path in (named.get(option, "") for option in ("--weights", "train.init_checkpoint", "MODEL.WEIGHTS")):
        if path and "://" not in path and cfg is not None:
            _write_detector(folder / path, cfg)
    for name in words:
        if re.fullmatch(r"(?i)(\w+/)*\w*(lift|plain)\w*\.safetensors", name) and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            save_lift(LiFTPlus(384, 14 if "patch14" in " ".join(argv) else 16), folder / name)


def write_hub_of_example(folder: Path, text: str) -> None:
    """timm's weights that a Python example asks the hub for."""
    for name in re.findall(r'"(\w+\.\w+)", pretrained=True', text):
        _write_hub(folder, name)


def _config(folder: Path, argv: Sequence[str], named: dict[str, str]) -> DictConfig | CfgNode | None:
    """The config that a command names, with its overrides; None if it names none or it is not made yet."""
    candidates = [word for word in argv if word.startswith(("COCO/", "LiFT/", "quick_schedules/"))]
    for name in [named["--config-file"]] if "--config-file" in named else candidates:
        with mock.patch.object(sys, "path", [str(folder), *sys.path]):  # for what a reader's config imports
            cfg = config.load(folder / name if (folder / name).is_file() else name)
        if isinstance(cfg, CfgNode):
            keys = [i for i, word in enumerate(argv) if re.fullmatch(r"[A-Z_]+(\.[A-Z_]+)*", word)]
            return config.apply_overrides(cfg, [word for i in keys for word in argv[i : i + 2]])
        overrides = [word for word in argv if re.match(r"(model|train|dataloader|optimizer)\.[\w.\[\]]+=", word)]
        return config.apply_overrides(cfg, overrides)
    return None


def _vits(node: Any) -> Iterator[DictConfig]:
    """The parts of a config that are a timm ViT."""
    if isinstance(node, DictConfig):
        if "TimmViT" in str(node.get("_target_", "")):
            yield node
        for key in node:
            if key != "evaluator":  # its interpolations are for a training
                yield from _vits(node._get_node(key))
    elif isinstance(node, ListConfig):
        for i in range(len(node)):
            yield from _vits(node._get_node(i))


def _start(cfg: DictConfig | CfgNode | None) -> str:
    if cfg is None:
        return ""
    return cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.get("train", {}).get("init_checkpoint", "")


def _timm_weights(name: str, **changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # the same name has the same weights wherever they lie
    return timm.create_model(name, **changes).state_dict()


def _write_hub(folder: Path, name: str) -> None:
    hub_id = timm.get_pretrained_cfg(name).hf_hub_id
    repository = folder / "cache/huggingface/hub" / f"models--{hub_id.replace('/', '--')}"
    file = repository / "snapshots" / COMMIT / "model.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(COMMIT)
        save_file(_timm_weights(name), file)


def _write_vit(path: Path, name: str) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = _timm_weights(name, num_classes=0)
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)


def _write_mae(folder: Path, address: str, cfg: DictConfig | CfgNode) -> None:
    """What detectron2's cache of downloads holds of ``detectron2://ImageNetPretrained/MAE/…``."""
    path = address.removeprefix("detectron2://").split("?")[0]
    file = folder / "cache/fvcore/detectron2" / path
    net = cfg.MODEL.VIT if isinstance(cfg, CfgNode) else cfg.model.backbone.net
    depth = net.DEPTH if isinstance(cfg, CfgNode) else net.depth
    # one name, whatever the depth that a command was shortened to
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": _timm_weights("vit_base_patch16_224.mae", num_classes=0, depth=depth)}, file)


def _write_detector(path: Path, cfg: DictConfig | CfgNode) -> None:
    """A checkpoint of a whole model."""
    if path.exists():
        return
    torch.manual_seed(0)
    if isinstance(cfg, CfgNode):
        model = build_model(cfg)
    else:
        for net in _vits(cfg.model):
            net.pretrained, net.checkpoint = False, ""
        model = instantiate(cfg.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, path)
