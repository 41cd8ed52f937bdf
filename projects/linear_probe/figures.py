"""The figures: pixel counts, IoU, the band along boundaries, and the interval over images of a difference."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from .labels import IGNORED

_BOOTSTRAP_SAMPLES = 1000


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
