"""The comparison of all methods, and its table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import lift_det
from lift_det.modeling import FeatureUpsampler
from lift_det.modeling.upsamplers import resize

from .figures import bootstrap_difference, boundary_band, intersection_over_union, mean_iou, pixel_accuracy
from .labels import BACKGROUND, IGNORED, LabelledImages
from .probe import Settings, evaluate, extract, standardise, train_probe

OWN_MAP, BILINEAR, TRUE_FEATURES = "none", "bilinear", "true"


def compare(
    net: lift_det.TimmViT,
    lifts: Mapping[str, FeatureUpsampler],
    train: LabelledImages,
    val: LabelledImages,
    settings: Settings,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains and scores ``settings.seeds`` probes on the features of every method.

    Args:
        net: the ViT.
        lifts: trained upsamplers for this ViT, by name.
        train, val: crops of ``settings.label_size`` pixels, with the same classes.

    Returns:
        the content of ``results.json``, with figures in percent.

    Raises:
        ValueError: settings, data or upsamplers do not match.
    """
    _check(net, lifts, train, val, settings)
    net = net.eval()
    device = next(net.parameters()).device
    (feature,) = net.output_shape()
    splits = {"train": train, "val": val}
    bands = torch.stack([boundary_band(labels, settings.band) for labels in val.labels])

    def maps_of(side: int) -> dict[str, Tensor]:
        return {
            split: extract(data.images, lambda x, _: net(resize(x, (side, side)))[feature], net)
            for split, data in splits.items()
        }

    own = maps_of(settings.input_size)

    def upsampled(upsampler: FeatureUpsampler, split: str) -> Tensor:
        def compute(images: Tensor, where: slice) -> Tensor:
            return upsampler.upsample(images, own[split][where].permute(0, 3, 1, 2).contiguous(), settings.steps)

        return extract(splits[split].images, compute, net)

    upsamplers = {BILINEAR: lift_det.BilinearUpsample(), **lifts}
    results: dict[str, dict[str, Any]] = {}
    baselines: tuple[Tensor, Tensor] | None = None
    # bilinear is first, because the others are compared with it; the ViT's own maps are last, because they are modified
    for name in (*upsamplers, TRUE_FEATURES, OWN_MAP):
        start = time.perf_counter()
        if name in upsamplers:
            upsampler = upsamplers[name].to(device).eval()
            maps = {split: upsampled(upsampler, split) for split in splits}
        else:
            maps = own if name == OWN_MAP else maps_of(settings.input_size * 2**settings.steps)
        standardise(maps["train"], maps["val"])
        num_classes = len(train.class_names)
        probes = [train_probe(maps["train"], train.labels, num_classes, i, settings) for i in range(settings.seeds)]
        matrices = [evaluate(probe, maps["val"], val.labels, bands, num_classes) for probe in probes]
        confusions = tuple(torch.stack(of_seeds) for of_seeds in zip(*matrices, strict=True))  # (seeds, M, K, K) each
        baselines = baselines or confusions
        results[name] = _summarise(confusions, baselines, val.class_names) | {
            "map": list(maps["train"].shape[1:3]),
            "training_loss": [probe.training_loss for probe in probes],
            "seconds": time.perf_counter() - start,
        }
        figures = " and ".join(f"{results[name][f]['mean']:.2f}" for f in ("miou", "boundary_miou"))
        log(f"{name}: mIoU and boundary mIoU {figures}, {results[name]['seconds']:.0f} s")
    return {
        "methods": {name: results[name] for name in (OWN_MAP, *upsamplers, TRUE_FEATURES)},
        "settings": asdict(settings),
        "train_images": len(train.images),
        "val_images": len(val.images),
        "classes_in_val": len(results[BILINEAR]["iou_by_class"]),
    }


def _check(
    net: lift_det.TimmViT,
    lifts: Mapping[str, FeatureUpsampler],
    train: LabelledImages,
    val: LabelledImages,
    settings: Settings,
) -> None:
    large = settings.input_size * 2**settings.steps
    if settings.input_size % net.patch_size:
        raise ValueError(f"input_size must be a multiple of {net.patch_size} pixels, got {settings.input_size}.")
    if large > settings.label_size:
        raise ValueError(f"The true features need {large} pixels, more than the label_size of {settings.label_size}.")
    for name, lift in lifts.items():
        if name in (OWN_MAP, BILINEAR, TRUE_FEATURES):
            raise ValueError(f"The name '{name}' is reserved: use another name for this LiFT.")
        try:
            lift.use_features(net.feature_spec(weights=False))
        except ValueError as error:
            raise ValueError(f"'{name}': {error}") from error
    if train.class_names != val.class_names:
        raise ValueError("The training and the validation set must have the same classes in the same order.")
    for split, data in (("training", train), ("validation", val)):
        if not ((data.labels != BACKGROUND) & (data.labels != IGNORED)).any():
            raise ValueError(f"None of the {len(data.labels)} {split} images has an object in its crop: use more.")


def _summarise(
    confusions: tuple[Tensor, Tensor], baselines: tuple[Tensor, Tensor], class_names: Sequence[str]
) -> dict[str, Any]:
    """Figures in percent from (seeds, M, K, K) pixel counts, everywhere and in the band."""
    everywhere, near = (matrices.sum(1) for matrices in confusions)  # (seeds, K, K)
    figures = {"miou": mean_iou(everywhere), "boundary_miou": mean_iou(near), "accuracy": pixel_accuracy(everywhere)}
    summary: dict[str, Any] = {}
    for name, values in figures.items():
        std = (100 * values).std().item() if len(values) > 1 else 0.0
        summary[name] = {"mean": (100 * values).mean().item(), "std": std, "by_seed": (100 * values).tolist()}
    for name, matrices, baseline in zip(("miou", "boundary_miou"), confusions, baselines, strict=True):
        low, high = bootstrap_difference(matrices, baseline)
        difference = (mean_iou(matrices.sum(1)) - mean_iou(baseline.sum(1))).mean().item()
        summary[name]["minus_bilinear"] = {"mean": 100 * difference, "low": 100 * low, "high": 100 * high}
    by_class = (100 * intersection_over_union(everywhere).mean(0)).tolist()
    # without classes that do not occur, because JSON has no NaN
    return summary | {"iou_by_class": {n: v for n, v in zip(class_names, by_class, strict=True) if not math.isnan(v)}}


def format_table(results: Mapping[str, Any]) -> str:
    """A Markdown table: mean ± standard deviation over the seeds, intervals over the images."""
    band, difference = results["settings"]["band"], "minus bilinear [95%]"
    header = ("features", "map", "mIoU", difference, f"mIoU within {band} px of boundaries", difference)
    rows = [(*header, "pixel accuracy"), ("---",) * 7]
    for name, result in results["methods"].items():
        cells = [name, "×".join(map(str, result["map"]))]
        for figure in ("miou", "boundary_miou", "accuracy"):
            cells.append(f"{result[figure]['mean']:.2f} ± {result[figure]['std']:.2f}")
            if "minus_bilinear" in result[figure]:
                mean, low, high = result[figure]["minus_bilinear"].values()
                cells.append("" if name == BILINEAR else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
