"""The comparison: probes on the features of every method, their figures, and the table."""

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
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains and scores ``settings.seeds`` probes on the features of every method.

    Args:
        net: the ViT.
        lifts: trained upsamplers for this ViT, by the names that the results shall have.
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
        split: extract(data.images, lambda x, _: net(resize(x, small))[feature], net)
        for split, data in (("train", train), ("val", val))
    }
    report(f"features of {len(train.images)} + {len(val.images)} images: {time.perf_counter() - start:.0f} s")

    def upsampled(upsampler: FeatureUpsampler, split: str) -> Callable[[Tensor, slice], Tensor]:
        def compute(x: Tensor, where: slice) -> Tensor:
            maps = own[split][where].permute(0, 3, 1, 2).contiguous()
            return upsampler.upsample(x, maps, settings.steps)

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
                maps[split] = extract(data.images, lambda x, _: net(resize(x, large))[feature], net)
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
    lifts: Mapping[str, FeatureUpsampler],
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
        try:
            lift.use_features(net.feature_spec(weights=False))
        except ValueError as error:
            raise ValueError(f"'{name}': {error}") from error
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
