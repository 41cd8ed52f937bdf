#!/usr/bin/env python
"""A linear probe of segmentation: which class is at this pixel, read off a frozen ViT's features by a 1×1 convolution.

Compares the ViT's own map, bilinear upsampling, any number of trained LiFTs, and the ViT's true features of a larger
image. README.md beside this file says what is measured and how.

python projects/linear_probe/linear_probe.py --backbone vit_small_patch14_dinov2.lvd142m --pretrained \
    --lift lift=lift.safetensors --output output/linear_probe
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import timm
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

import lift_det
from lift_det.checkpoint import CheckpointError
from lift_det.data import DatasetError, get_dataset_dicts
from lift_det.data.images import read_rgb
from lift_det.modeling.lift import FeatureUpsampler, resize_images

BACKGROUND = 0
IGNORED = 255  # of a label map: no loss and no score there
OWN_MAP, BILINEAR, TRUE_FEATURES = "none", "bilinear", "true"
_BOOTSTRAP_SAMPLES = 1000
_BATCH = 8  # images that go through the ViT or LiFT at once


@dataclass(frozen=True)
class Settings:
    """What is the same for every method that is compared.

    Attributes:
        input_size: side, in pixels, of the square images that the ViT sees.
        steps: how often a map is doubled; the true features are those of an image of ``input_size * 2**steps`` pixels.
        label_size: side of the square crops, of their label maps and of the predictions.
        band: pixels on each side of a boundary between labels that the boundary figure looks at.
        seeds: probes to train on each method's features, with the seeds 0, 1, …
        iterations: steps of AdamW; its rate falls from ``learning_rate`` to zero along a cosine.
        batch_pixels: labelled pixels in a step, drawn uniformly from all training images.
        learning_rate, weight_decay: of AdamW.
    """

    input_size: int = 224
    steps: int = 1
    label_size: int = 448
    band: int = 8
    seeds: int = 3
    iterations: int = 500
    batch_pixels: int = 4096
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class LabelledImages:
    """The images of a split with their label maps.

    Attributes:
        images: uint8 (M, 3, L, L), RGB.
        labels: uint8 (M, L, L): 0 is background, 1 … K - 1 are the classes, 255 is ignored.
        class_names: K names, the first of them the background's.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A trained 1×1 convolution: weight (K, C) and bias (K,)."""

    weight: Tensor
    bias: Tensor
    training_loss: float


# ---------------------------------------------------------------------------------------------------------- label maps


def draw_label_map(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """Draws the annotations of an image over each other.

    Crowds come first, as ignored pixels: who stands in them is not told apart, but what is annotated by itself before
    a crowd is known. Then the objects from the largest to the smallest, because what is annotated twice is most often
    a small thing on or before a large one; COCO says nothing about depth.

    Args:
        annotations: of one image in detectron2's dataset format: contiguous ``category_id`` from 0, ``segmentation`` as
            polygons or RLE in pixels.
        height, width: of the image.

    Returns:
        uint8 (height, width): 0 is background, ``category_id + 1`` an object, 255 ignored.
    """
    labels = np.full((height, width), BACKGROUND, np.uint8)
    objects = []
    for annotation in annotations:
        mask = _decode(annotation["segmentation"], height, width)
        if annotation.get("iscrowd", 0):
            labels[mask] = IGNORED
        else:
            objects.append((int(mask.sum()), annotation["category_id"] + 1, mask))
    for _, label, mask in sorted(objects, key=lambda item: -item[0]):
        labels[mask] = label
    return labels


def _decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.decode(segmentation).astype(bool)


def resize_and_crop(image: np.ndarray, labels: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Scales the short side to ``size`` and cuts the square from the middle.

    Args:
        image: uint8 (H, W, 3); labels: uint8 (H, W); size: in pixels.

    Returns:
        The image, uint8 (3, size, size), bilinear and antialiased; the labels, uint8 (size, size), the nearest ones.
    """
    height, width = labels.shape
    scale = size / min(height, width)
    new_size = (max(size, round(height * scale)), max(size, round(width * scale)))
    pixels = resize_images(torch.tensor(image).permute(2, 0, 1)[None].float(), new_size)[0]
    # "nearest-exact" looks at the centres of pixels, as the images' interpolation does; "nearest" is shifted
    nearest = F.interpolate(torch.from_numpy(labels)[None, None].float(), size=new_size, mode="nearest-exact")[0, 0]
    top, left = ((side - size) // 2 for side in new_size)
    window = np.s_[..., top : top + size, left : left + size]
    return pixels[window].round().clamp(0, 255).to(torch.uint8), nearest[window].to(torch.uint8)


def label_table(name: str, classes: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """What becomes of the labels of a registered data set.

    Args:
        name: of the data set, which has been loaded.
        classes: ``"categories"`` as they are, ``"supercategories"`` as the annotation file names them, in alphabetical
            order, or ``"object"``: anything but background.

    Returns:
        uint8 (256,), the new label of each (background and ignored stay), and the names of the new labels.

    Raises:
        DatasetError: too many classes, or an annotation file without supercategories.
    """
    metadata = MetadataCatalog.get(name)
    categories = list(metadata.thing_classes)
    if len(categories) >= IGNORED:
        raise DatasetError(
            f"'{name}' has {len(categories)} classes; label maps of bytes hold up to {IGNORED - 1}. "
            "Register a data set with fewer classes."
        )
    if classes == "supercategories":
        groups = _supercategories(name)
    else:
        groups = categories if classes == "categories" else ["object"] * len(categories)
    names = sorted(set(groups)) if classes == "supercategories" else list(dict.fromkeys(groups))
    table = np.full(256, IGNORED, np.uint8)
    table[BACKGROUND] = BACKGROUND
    table[1 : 1 + len(groups)] = [1 + names.index(group) for group in groups]
    return table, ("background", *names)


def _supercategories(name: str) -> list[str]:
    """The supercategory of each contiguous class."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        raise DatasetError(
            f"'{name}' keeps no annotation file, in which supercategories could be looked up: take the data set that "
            "it is a part of, or --classes categories."
        )
    with open(metadata.json_file, encoding="utf-8") as file:
        by_id = {category["id"]: category.get("supercategory") for category in json.load(file)["categories"]}
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    groups = [by_id.get(dataset_id) for dataset_id in sorted(contiguous, key=contiguous.__getitem__)]
    if None in groups:
        raise DatasetError(
            f"'{metadata.json_file}' does not give each of the {len(groups)} categories of '{name}' a supercategory: "
            "write them in, or take --classes categories."
        )
    return groups


def load_labelled_images(name: str, size: int, limit: int | None = None, classes: str = "categories") -> LabelledImages:
    """Reads a registered COCO data set.

    Args:
        name: such as ``coco_2017_val``.
        size: side of the square crops in pixels.
        limit: only the first so many images.
        classes: see :func:`label_table`.

    Raises:
        DatasetError: the data set or one of its images is missing or cannot be used.
    """
    records = get_dataset_dicts(name, filter_empty=False)[:limit]
    table, class_names = label_table(name, classes)
    images, labels = [], []
    for record in records:
        image, reason = read_rgb(record["file_name"])
        if image is None:
            raise DatasetError(
                f"An image of '{name}', '{record['file_name']}', cannot be read: {reason}. Fetch it again, or take its "
                "entry out of the annotation file."
            )
        expected = (record["height"], record["width"])
        if image.shape[:2] != expected:
            raise DatasetError(
                f"'{record['file_name']}' has {image.shape[0]}×{image.shape[1]} pixels and the annotations of '{name}' "
                f"are for {expected[0]}×{expected[1]}: the file is not the one that was annotated. Fetch it again."
            )
        unusable = [a for a in record["annotations"] if not a.get("segmentation")]
        if unusable:
            raise DatasetError(
                f"{len(unusable)} annotations of image {record['image_id']} of '{name}' have no segmentation, and a "
                "label map needs one of each: name a data set with masks (instances_*.json)."
            )
        label_map = table[draw_label_map(record["annotations"], *expected)]
        pixels, label_map = resize_and_crop(image, label_map, size)
        images.append(pixels)
        labels.append(label_map)
    return LabelledImages(torch.stack(images), torch.stack(labels), class_names)


# ------------------------------------------------------------------------------------------------------------- figures


def confusion_matrix(truth: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Counts pixels by label; ignored ones are left out.

    Args:
        truth, prediction: integers of one shape, below ``num_classes`` or, in ``truth``, 255.

    Returns:
        int64 (num_classes, num_classes): rows are the truth, columns the prediction.
    """
    valid = truth != IGNORED
    pairs = truth[valid].long() * num_classes + prediction[valid].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """(…, K, K) pixel counts, rows the truth → float64 (…, K) IoU, NaN for classes that do not occur in the truth."""
    confusion = confusion.double()
    hits = confusion.diagonal(dim1=-2, dim2=-1)
    truth = confusion.sum(-1)
    iou = hits / (truth + confusion.sum(-2) - hits)
    return torch.where(truth > 0, iou, torch.nan)


def mean_iou(confusion: Tensor) -> Tensor:
    """(…, K, K) pixel counts, rows the truth → float64 (…), the mean IoU of the classes that occur in the truth."""
    return intersection_over_union(confusion).nanmean(-1)


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """(…, K, K) pixel counts → float64 (…), the share on the diagonal."""
    confusion = confusion.double()
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def boundary_band(labels: Tensor, width: int) -> Tensor:
    """Finds the pixels near a boundary between two labels (a trimap).

    The pixels on both sides of a boundary, whose left, right, upper or lower neighbour has another label, and all whose
    centre is less than ``width`` from one of those: along a straight boundary, ``width`` pixels on each side. The edge
    of an ignored region is no boundary: what lies on its other side is not known.

    Args:
        labels: uint8 (H, W); width: in pixels, at least 1.

    Returns:
        bool (H, W)
    """
    edge = torch.zeros_like(labels, dtype=torch.bool)
    known = labels != IGNORED
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[one] != labels[other]) & known[one] & known[other]
        edge[one] |= differ
        edge[other] |= differ
    if not edge.any():
        return edge  # distances to nothing
    distance = cv2.distanceTransform((~edge).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance < width)


def bootstrap_difference(
    confusions: Tensor, baseline: Tensor, samples: int = _BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """A 95% interval of the difference in mean IoU, over the choice of the validation images.

    Images are drawn with replacement, the same for both methods and for all seeds, and the difference is averaged over
    the seeds.

    Args:
        confusions, baseline: (seeds, M, K, K) pixel counts of each image by two methods.
        samples: draws of M images.
        seed: of the draws.

    Returns:
        The 2.5th and 97.5th percentile of the difference.
    """
    num_images, num_classes = confusions.shape[1:3]
    counts = np.random.default_rng(seed).multinomial(num_images, [1 / num_images] * num_images, size=samples)
    means = []
    for matrices in (confusions, baseline):
        flat = matrices.double().flatten(2)  # (seeds, M, K·K)
        by_seed = [
            torch.cat(
                [
                    mean_iou((c @ m).unflatten(1, (num_classes, -1)))
                    for c in torch.from_numpy(counts).double().split(100)
                ]
            )
            for m in flat
        ]  # seeds times (samples,)
        means.append(torch.stack(by_seed).mean(0))
    low, high = torch.quantile(means[0] - means[1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


# ------------------------------------------------------------------------------------------------------------ features


@torch.no_grad()
def extract(images: Tensor, compute: Callable[[Tensor, slice], Tensor], net: lift_det.TimmViT) -> Tensor:
    """Computes the map of every image.

    Args:
        images: uint8 (M, 3, L, L).
        compute: gets (N, 3, L, L), normalised for the ViT, and where in ``images`` they are; gives (N, C, h, w).
        net: says how images are normalised.

    Returns:
        (M, h, w, C), in this order because the probe reads all channels of one position at a time.
    """
    device = next(net.parameters()).device
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (net.pixel_mean, net.pixel_std))
    maps = []
    for start in range(0, len(images), _BATCH):
        where = slice(start, min(start + _BATCH, len(images)))
        batch = (images[where].to(device).float() - mean) / std
        maps.append(compute(batch, where).permute(0, 2, 3, 1).contiguous())
    return torch.cat(maps)


def standardise(train: Tensor, val: Tensor) -> None:
    """Gives each channel of ``train``, (M, h, w, C), mean 0 and deviation 1; does the same to ``val``; both in place.

    Some channels of a ViT are tens of times as large as the others: without this the probe would learn from them alone.
    """
    rows = train.flatten(0, 2)  # (M·h·w, C)
    mean, std = rows.mean(0), rows.std(0).clamp(min=1e-6)
    for maps in (train, val):
        maps.sub_(mean).div_(std)


# --------------------------------------------------------------------------------------------------------------- probe


def sample_features(features: Tensor, pixels: Tensor, label_size: int) -> Tensor:
    """Interpolates maps bilinearly at single pixels of their images.

    It is what ``F.interpolate(…, align_corners=False)`` to ``label_size`` gives at those pixels. A 1×1 convolution
    of it is the same convolution's logits interpolated there, because both are linear: the loss at drawn pixels costs
    nothing for the others.

    Args:
        features: (M, h, w, C), contiguous.
        pixels: int64 (P,), indices into the (M, label_size, label_size) pixels of all images.

    Returns:
        (P, C)
    """
    _, h, w, channels = features.shape
    image, row, column = pixels // label_size**2, pixels // label_size % label_size, pixels % label_size
    top, bottom, down = _neighbours(row, label_size, h)
    left, right, along = _neighbours(column, label_size, w)
    corners = [(image * h + y) * w + x for y in (top, bottom) for x in (left, right)]
    weights = [(1 - down) * (1 - along), (1 - down) * along, down * (1 - along), down * along]
    return F.embedding_bag(
        torch.stack(corners, 1),  # (P, 4)
        features.view(-1, channels),
        per_sample_weights=torch.stack(weights, 1).to(features.dtype),
        mode="sum",
    )


def _neighbours(position: Tensor, size: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """For pixels of an axis: the cells before and behind them, and how far (0 to 1) they are from the first."""
    source = ((position + 0.5) * (cells / size) - 0.5).clamp(min=0)
    before = source.long()
    return before, (before + 1).clamp(max=cells - 1), source - before


def train_probe(features: Tensor, labels: Tensor, num_classes: int, seed: int, settings: Settings) -> Probe:
    """Trains the probe by the cross-entropy of drawn pixels.

    The seed decides on the first weights and on the pixels of each step. The pixels are the same for every method.

    Args:
        features: (M, h, w, C), standardised.
        labels: uint8 (M, L, L).
        num_classes: K.
    """
    generator = torch.Generator().manual_seed(seed)
    label_size, device = labels.shape[-1], features.device
    # torch's own initialisation would draw from the global generator
    linear = nn.utils.skip_init(nn.Linear, features.shape[-1], num_classes, device=device)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * 0.01)
        linear.bias.zero_()
    optimizer = torch.optim.AdamW(linear.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    flat_labels = labels.flatten()
    losses = []
    for _ in range(settings.iterations):
        pixels = torch.randint(len(flat_labels), (settings.batch_pixels,), generator=generator)
        target = flat_labels[pixels].long().to(device)
        logits = linear(sample_features(features, pixels.to(device), label_size))
        loss = F.cross_entropy(logits, target, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    last = torch.stack(losses[-100:]).mean().item()
    return Probe(linear.weight.detach(), linear.bias.detach(), last)


@torch.inference_mode()
def predict(probe: Probe, features: Tensor, label_size: int) -> Tensor:
    """Labels every pixel: bilinearly interpolated logits, and the largest of them.

    Args:
        features: (h, w, C), standardised.

    Returns:
        int64 (label_size, label_size)
    """
    logits = (features @ probe.weight.T + probe.bias).permute(2, 0, 1)  # (K, h, w)
    # Most classes are below the background in every cell, and then between the cells, too: they need no interpolation.
    candidates = (~(logits < logits[BACKGROUND])).flatten(1).any(1).nonzero()[:, 0]
    size = (label_size, label_size)
    logits = F.interpolate(logits[candidates][None], size=size, mode="bilinear", align_corners=False)[0]
    return candidates[logits.argmax(0)]


def evaluate(probe: Probe, features: Tensor, labels: Tensor, bands: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Scores a probe.

    Args:
        features: (M, h, w, C); labels: uint8 (M, L, L); bands: bool (M, L, L), see :func:`boundary_band`.

    Returns:
        int32 (M, K, K) twice: the confusion matrix of each image over all of its pixels, and over those in the band.
    """
    everywhere, near = [], []
    for maps, truth, band in zip(features, labels, bands, strict=True):
        prediction = predict(probe, maps, truth.shape[-1]).cpu()
        everywhere.append(confusion_matrix(truth, prediction, num_classes).int())
        near.append(confusion_matrix(truth[band], prediction[band], num_classes).int())
    return torch.stack(everywhere), torch.stack(near)


# ---------------------------------------------------------------------------------------------------------- comparison


def compare(
    net: lift_det.TimmViT,
    lifts: Mapping[str, lift_det.LiFT],
    train: LabelledImages,
    val: LabelledImages,
    settings: Settings,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains and scores ``settings.seeds`` probes on the features of every method.

    Args:
        net: the ViT.
        lifts: trained LiFTs for this ViT, by the names that the results shall have.
        train, val: crops of ``settings.label_size`` with the same classes.
        report: is told of the progress.

    Returns:
        What ``results.json`` holds: ``"methods"`` by name, each with figures (percent) for each seed, their mean and
        standard deviation, and the difference to bilinear with its interval over images; and the settings.

    Raises:
        ValueError: settings, data or LiFTs that do not belong together.
    """
    _check(net, lifts, train, val, settings)
    net = net.eval()
    num_classes = len(train.class_names)
    bands = torch.stack([boundary_band(labels, settings.band) for labels in val.labels])
    small = (settings.input_size, settings.input_size)
    large = tuple(side * 2**settings.steps for side in small)

    (feature,) = net.output_shape()

    start = time.perf_counter()
    own = {
        split: extract(data.images, lambda x, _: net(resize_images(x, small))[feature], net)
        for split, data in (("train", train), ("val", val))
    }
    report(f"features of {len(train.images)} + {len(val.images)} images: {time.perf_counter() - start:.0f} s")

    def upsampled(upsampler: FeatureUpsampler, split: str) -> Callable[[Tensor, slice], Tensor]:
        def compute(x: Tensor, where: slice) -> Tensor:
            maps = own[split][where].permute(0, 3, 1, 2).contiguous()
            return upsampler.upsample(resize_images(x, small), maps, settings.steps, original=x)

        return compute

    device = next(net.parameters()).device
    upsamplers = {BILINEAR: lift_det.BilinearUpsample(), **lifts}
    # Bilinear comes first because the others are compared with it, and the ViT's own map last because it is changed.
    order = [BILINEAR, *lifts, TRUE_FEATURES, OWN_MAP]
    results: dict[str, dict[str, Any]] = {}
    baselines: tuple[Tensor, Tensor] | None = None
    for name in order:
        start = time.perf_counter()
        maps = {}
        for split, data in (("train", train), ("val", val)):
            if name == OWN_MAP:
                maps[split] = own[split]
            elif name == TRUE_FEATURES:
                maps[split] = extract(data.images, lambda x, _: net(resize_images(x, large))[feature], net)
            else:
                upsampler = upsamplers[name].to(device).eval()
                maps[split] = extract(data.images, upsampled(upsampler, split), net)
        standardise(maps["train"], maps["val"])
        extracted = time.perf_counter()
        losses, everywhere, near = [], [], []
        for seed in range(settings.seeds):
            probe = train_probe(maps["train"], train.labels, num_classes, seed, settings)
            matrices = evaluate(probe, maps["val"], val.labels, bands, num_classes)
            losses.append(probe.training_loss)
            everywhere.append(matrices[0])
            near.append(matrices[1])
        confusions = (torch.stack(everywhere), torch.stack(near))  # (seeds, M, K, K) each
        baselines = baselines or confusions
        results[name] = _summarise(confusions, baselines, val.class_names) | {
            "map": list(maps["train"].shape[1:3]),
            "training_loss": losses,
            "seconds": {"features": extracted - start, "probes": time.perf_counter() - extracted},
        }
        figures = " and ".join(f"{results[name][f]['mean']:.2f}" for f in ("miou", "boundary_miou"))
        report(f"{name}: mIoU and boundary mIoU {figures}, {time.perf_counter() - start:.0f} s")
    return {
        "methods": {name: results[name] for name in (OWN_MAP, BILINEAR, *lifts, TRUE_FEATURES)},
        "settings": asdict(settings),
        "train_images": len(train.images),
        "val_images": len(val.images),
        "classes_in_val": len(results[BILINEAR]["iou_by_class"]),
    }


def _check(
    net: lift_det.TimmViT,
    lifts: Mapping[str, lift_det.LiFT],
    train: LabelledImages,
    val: LabelledImages,
    settings: Settings,
) -> None:
    if settings.input_size % net.patch_size:
        raise ValueError(
            f"An input size of {settings.input_size} pixels is not whole patches of {net.patch_size} pixels: "
            "choose a multiple."
        )
    if settings.input_size * 2**settings.steps > settings.label_size:
        raise ValueError(
            f"The true features need images of {settings.input_size * 2**settings.steps} pixels (input size "
            f"{settings.input_size}, doubled {settings.steps} times), and the crops have {settings.label_size}: choose "
            "a larger label size, or a smaller input size."
        )
    if min(settings.steps, settings.seeds, settings.iterations, settings.batch_pixels, settings.band) < 1:
        raise ValueError(f"steps, seeds, iterations, batch_pixels and band must be at least 1, got {settings}.")
    for name, lift in lifts.items():
        if name in (OWN_MAP, BILINEAR, TRUE_FEATURES):
            raise ValueError(f"'{name}' is the name of a method that is always compared: call this LiFT otherwise.")
        if (lift.in_channels, lift.patch_size) != (net.embed_dim, net.patch_size):
            raise ValueError(
                f"The LiFT '{name}' is for {lift.in_channels} channels and patches of {lift.patch_size} pixels, the "
                f"ViT has {net.embed_dim} and {net.patch_size}: name a LiFT that was trained on this ViT's features."
            )
    if train.class_names != val.class_names:
        raise ValueError(
            f"The training set's {len(train.class_names) - 1} classes and the validation set's "
            f"{len(val.class_names) - 1} are not the same, in the same order: name two splits of one data set."
        )
    for which, data in (("training", train), ("validation", val)):
        if data.labels.shape[-1] != settings.label_size:
            raise ValueError(f"The {which} crops have {data.labels.shape[-1]} pixels, not {settings.label_size}.")
        if not ((data.labels != BACKGROUND) & (data.labels != IGNORED)).any():
            raise ValueError(
                f"None of the {len(data.labels)} {which} images has an object in its middle square: take more images."
            )


def _summarise(
    confusions: tuple[Tensor, Tensor], baselines: tuple[Tensor, Tensor], class_names: Sequence[str]
) -> dict[str, Any]:
    """Figures in percent of (seeds, M, K, K) pixel counts, everywhere and in the band."""
    everywhere, near = (matrices.sum(1) for matrices in confusions)  # (seeds, K, K)
    figures = {"miou": mean_iou(everywhere), "boundary_miou": mean_iou(near), "accuracy": pixel_accuracy(everywhere)}
    summary: dict[str, Any] = {name: _spread(100 * values) for name, values in figures.items()}
    for name, matrices, baseline in zip(("miou", "boundary_miou"), confusions, baselines, strict=True):
        low, high = bootstrap_difference(matrices, baseline)
        difference = (mean_iou(matrices.sum(1)) - mean_iou(baseline.sum(1))).mean().item()
        summary[name]["minus_bilinear"] = {"mean": 100 * difference, "low": 100 * low, "high": 100 * high}
    by_class = (100 * intersection_over_union(everywhere).mean(0)).tolist()
    # JSON knows no NaN: classes that do not occur are left out
    return summary | {"iou_by_class": {n: v for n, v in zip(class_names, by_class, strict=True) if not math.isnan(v)}}


def _spread(values: Tensor) -> dict[str, Any]:
    std = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "std": std, "by_seed": values.tolist()}


def format_table(results: Mapping[str, Any]) -> str:
    """The results as a table in Markdown: mean ± standard deviation over the seeds, intervals over the images."""
    band = results["settings"]["band"]
    lines = [
        f"| features | map | mIoU | minus bilinear [95%] | mIoU within {band} px of boundaries | minus bilinear [95%] "
        "| pixel accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results["methods"].items():
        cells = [name, "×".join(map(str, result["map"]))]
        for figure in ("miou", "boundary_miou"):
            difference = result[figure]["minus_bilinear"]
            cells.append(f"{result[figure]['mean']:.2f} ± {result[figure]['std']:.2f}")
            interval = f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
            cells.append("" if name == BILINEAR else interval)
        cells.append(f"{result['accuracy']['mean']:.2f} ± {result['accuracy']['std']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- command line


def _named_file(text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not (name and separator and file):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE.safetensors, got '{text}'")
    return name, file


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got '{text}'")
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="timm's name of the ViT")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", default="", metavar="FILE", help="a file of the ViT's weights")
    weights.add_argument("--pretrained", action="store_true", help="timm's own weights, from the Hugging Face hub")
    parser.add_argument(
        "--lift",
        type=_named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a trained LiFT and its name in the table; any number of times",
    )
    parser.add_argument("--train", default="coco_2017_train", help="registered data set (default: %(default)s)")
    parser.add_argument("--val", default="coco_2017_val", help="registered data set (default: %(default)s)")
    parser.add_argument(
        "--classes",
        default="categories",
        choices=("categories", "supercategories", "object"),
        help="what the probe tells apart, beside background (default: %(default)s)",
    )
    parser.add_argument("--limit", type=_positive, help="only the first so many images of each")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("output/linear_probe"), help="folder (default: %(default)s)"
    )
    for field, text in (
        ("input_size", "side of the square images that the ViT sees, in pixels"),
        ("steps", "how often maps are doubled"),
        ("label_size", "side of the crops and of their label maps, in pixels"),
        ("band", "pixels on each side of boundaries for the boundary figure"),
        ("seeds", "probes for each method"),
        ("iterations", "steps of AdamW"),
        ("batch_pixels", "pixels in a step"),
    ):
        parser.add_argument(
            f"--{field.replace('_', '-')}",
            type=_positive,
            default=getattr(Settings, field),
            help=f"{text} (%(default)s)",
        )
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate, help="(%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=Settings.weight_decay, help="(%(default)s)")
    args = parser.parse_args(argv)
    names = [name for name, _ in args.lift]
    if len(set(names)) < len(names):
        parser.error(f"--lift: each name only once, got {', '.join(names)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    settings = Settings(**{field: getattr(args, field) for field in Settings.__dataclass_fields__})
    try:
        net = lift_det.TimmViT(args.backbone, args.pretrained, args.checkpoint).to(args.device)
        lifts = {name: lift_det.load_lift(file) for name, file in args.lift}
        train = load_labelled_images(args.train, settings.label_size, args.limit, args.classes)
        val = load_labelled_images(args.val, settings.label_size, args.limit, args.classes)
        results = compare(net, lifts, train, val, settings)
    except (DatasetError, CheckpointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    results |= {
        "backbone": args.backbone,
        "checkpoint": args.checkpoint or "pretrained",
        "lift": dict(args.lift),
        "data": {"train": args.train, "val": args.val, "limit": args.limit, "classes": args.classes},
        "machine": {"device": args.device, "threads": torch.get_num_threads(), "processor": platform.machine()},
        "versions": {"lift_det": lift_det.__version__, "torch": torch.__version__, "timm": timm.__version__},
    }
    table = format_table(results)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.output / "table.md").write_text(table + "\n")
    print(f"\n{table}\n\nwritten to {args.output / 'results.json'} and table.md")


if __name__ == "__main__":
    main()
