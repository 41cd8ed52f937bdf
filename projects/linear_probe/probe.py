"""Features, and the probe: a 1×1 convolution that is trained on them and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lift_det

from .figures import confusion_matrix
from .labels import BACKGROUND, IGNORED

_BATCH = 8  # images that go through the ViT or an upsampler at once


def _setting(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Settings that all methods share; also the options of the command line."""

    input_size: int = _setting(224, "side of the square images for the ViT, in pixels")
    steps: int = _setting(1, "number of doublings; the true features are of input_size * 2**steps pixels")
    label_size: int = _setting(448, "side of the crops and of their label maps, in pixels")
    band: int = _setting(8, "pixels on either side of boundaries for the boundary mIoU")
    seeds: int = _setting(3, "number of probes for each method")
    iterations: int = _setting(500, "iterations of AdamW, with a cosine schedule to zero")
    batch_pixels: int = _setting(4096, "pixels per iteration, drawn uniformly from all training images")
    learning_rate: float = _setting(2e-3, "of AdamW")
    weight_decay: float = _setting(1e-2, "of AdamW")


class Probe(NamedTuple):
    """A trained 1×1 convolution: weight (K, C), bias (K,), and the mean loss of the last 100 iterations."""

    weight: Tensor
    bias: Tensor
    training_loss: float


@torch.no_grad()
def extract(images: Tensor, compute: Callable[[Tensor, slice], Tensor], net: lift_det.TimmViT) -> Tensor:
    """Computes the feature maps of uint8 images (M, 3, L, L): (M, h, w, C).

    ``compute`` takes images (N, 3, L, L), normalised for ``net``, and their position, and returns (N, C, h, w).
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
    """Standardises the channels of (M, h, w, C) in place, by the mean and deviation of ``train``."""
    rows = train.flatten(0, 2)  # (M·h·w, C)
    mean, std = rows.mean(0), rows.std(0).clamp(min=1e-6)
    for maps in (train, val):
        maps.sub_(mean).div_(std)


def sample_features(features: Tensor, pixels: Tensor, label_size: int) -> Tensor:
    """Interpolates maps at single pixels, as ``F.interpolate(…, mode="bilinear")`` to ``label_size`` would.

    A 1×1 convolution of the result is the interpolated logit, because both are linear.

    Args:
        features: (M, h, w, C), contiguous.
        pixels: int64 (P,), indices into (M, label_size, label_size).

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
    """The cells before and after pixels of an axis, and the distance (0 to 1) from the first."""
    source = ((position + 0.5) * (cells / size) - 0.5).clamp(min=0)
    before = source.long()
    return before, (before + 1).clamp(max=cells - 1), source - before


def train_probe(features: Tensor, labels: Tensor, num_classes: int, seed: int, settings: Settings) -> Probe:
    """Trains a probe on standardised features (M, h, w, C) and labels (M, L, L) by cross-entropy.

    The seed gives the initial weights and the pixels of each iteration.
    """
    generator = torch.Generator().manual_seed(seed)
    label_size, device = labels.shape[-1], features.device
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
    return Probe(linear.weight.detach(), linear.bias.detach(), torch.stack(losses[-100:]).mean().item())


@torch.inference_mode()
def predict(probe: Probe, features: Tensor, label_size: int) -> Tensor:
    """Returns the label of the largest interpolated logit: (h, w, C) → int64 (label_size, label_size)."""
    logits = (features @ probe.weight.T + probe.bias).permute(2, 0, 1)  # (K, h, w)
    # A class below the background in every cell stays below it between the cells: most need no interpolation.
    candidates = (~(logits < logits[BACKGROUND])).flatten(1).any(1).nonzero()[:, 0]
    size = (label_size, label_size)
    logits = F.interpolate(logits[candidates][None], size=size, mode="bilinear", align_corners=False)[0]
    return candidates[logits.argmax(0)]


def evaluate(probe: Probe, features: Tensor, labels: Tensor, bands: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the confusion matrices of each image, int32 (M, K, K): over all pixels, and over those in the band.

    Features are (M, h, w, C), labels (M, L, L), and bands bool (M, L, L), from :func:`.figures.boundary_band`.
    """
    everywhere, near = [], []
    for maps, truth, band in zip(features, labels, bands, strict=True):
        prediction = predict(probe, maps, truth.shape[-1]).cpu()
        everywhere.append(confusion_matrix(truth, prediction, num_classes).int())
        near.append(confusion_matrix(truth[band], prediction[band], num_classes).int())
    return torch.stack(everywhere), torch.stack(near)
