"""The probe: a 1×1 convolution that is trained on standardised features and scored; and what all methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lift_det

from .figures import confusion_matrix
from .labels import BACKGROUND, IGNORED

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
class Probe:
    """A trained 1×1 convolution: weight (K, C) and bias (K,)."""

    weight: Tensor
    bias: Tensor
    training_loss: float


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
