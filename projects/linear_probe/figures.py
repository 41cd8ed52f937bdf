"""Pixel counts, IoU, the band along boundaries, and bootstrap intervals."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from .labels import IGNORED


def confusion_matrix(truth: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Counts pixels by true label (rows) and predicted label (columns), without ignored ones: int64 (K, K)."""
    valid = truth != IGNORED
    pairs = truth[valid].long() * num_classes + prediction[valid].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """(…, K, K) pixel counts → float64 (…, K), NaN for classes that do not occur in the truth."""
    confusion = confusion.double()
    hits = confusion.diagonal(dim1=-2, dim2=-1)
    truth = confusion.sum(-1)
    return torch.where(truth > 0, hits / (truth + confusion.sum(-2) - hits), torch.nan)


def mean_iou(confusion: Tensor) -> Tensor:
    """(…, K, K) pixel counts → float64 (…), the mean over the classes that occur in the truth."""
    return intersection_over_union(confusion).nanmean(-1)


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """(…, K, K) pixel counts → float64 (…)."""
    confusion = confusion.double()
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def boundary_band(labels: Tensor, width: int) -> Tensor:
    """Returns the pixels within ``width`` pixels on either side of a boundary: uint8 (H, W) → bool (H, W).

    A boundary is between neighbouring pixels with different labels, neither of them ignored.
    """
    edge = torch.zeros_like(labels, dtype=torch.bool)
    known = labels != IGNORED
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[one] != labels[other]) & known[one] & known[other]
        edge[one] |= differ
        edge[other] |= differ
    if not edge.any():
        return edge
    distance = cv2.distanceTransform((~edge).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance < width)


def bootstrap_difference(
    confusions: Tensor, baseline: Tensor, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Returns a 95% interval of the difference in mean IoU over the choice of images.

    Images are drawn with replacement, the same for both methods and all seeds, and the result is averaged over seeds.

    Args:
        confusions, baseline: (seeds, M, K, K) pixel counts of each image, of two methods.
        samples: number of draws of M images.
        seed: of the draws.
    """
    num_images, num_classes = confusions.shape[1:3]
    counts = np.random.default_rng(seed).multinomial(num_images, [1 / num_images] * num_images, size=samples)
    draws = torch.from_numpy(counts).double().split(100)
    means = []
    for matrices in (confusions, baseline):
        flat = matrices.double().flatten(2)  # (seeds, M, K·K)
        by_draw = [mean_iou((draw @ flat).unflatten(2, (num_classes, -1))).mean(0) for draw in draws]
        means.append(torch.cat(by_draw))  # (samples,)
    low, high = torch.quantile(means[0] - means[1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
