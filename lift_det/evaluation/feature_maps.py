"""A ViT's features of a reduced image, upsampled, beside the true ones: the maps, and what makes them visible."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.evaluation import inference_context
from torch import Tensor

from lift_det.files import write_atomically
from lift_det.modeling.features import FeatureExtractor
from lift_det.modeling.lift import FeatureUpsampler, resize_images


def whole_patches(image: np.ndarray, patch_size: int, steps: int = 1, size: int = 448) -> Tensor:
    """An image of any size as :func:`upsampled_features` takes it.

    It gets about ``size``² pixels in its own proportions, and each side is then rounded to the nearest multiple of
    ``2**steps`` patches (one at least), so that proportions change by at most half of that on each side. A square image
    becomes ``size`` × ``size``; a panorama costs as much as a square.

    Args:
        image: (H, W, 3) uint8.
        patch_size: of the ViT, in pixels.
        steps: how often the map will be doubled.
        size: in pixels.

    Returns:
        (1, 3, height, width) float32, on the image's 0 to 255 scale.
    """
    unit = patch_size * 2**steps
    scale = size / math.sqrt(image.shape[0] * image.shape[1])
    target = tuple(max(1, round(side * scale / unit)) * unit for side in image.shape[:2])
    images = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return resize_images(images, target)


@torch.no_grad()
def upsampled_features(
    extractor: FeatureExtractor, upsamplers: Mapping[str, FeatureUpsampler], images: Tensor, steps: int = 1
) -> dict[str, Tensor]:
    """The ViT's features of images reduced ``2**steps`` times, these upsampled, and the true ones.

    Args:
        extractor: gives the features; a LiFT in it is not used. Left in the mode it was in, as the upsamplers are.
        upsamplers: names and what doubles the map, ``steps`` times each. LiFT sees the reduced image alone.
        images: (N, 3, H, W), normalised; H and W multiples of ``2**steps`` patches.
        steps: from 0.

    Returns:
        ``{"vit": (N, C, h, w), NAME: (N, C, h · 2**steps, w · 2**steps), …, "true": likewise}``, where ``vit`` is of
        the reduced images and ``true`` of the whole ones. On the images' device.

    Raises:
        ValueError: sides that are no such multiples, or an upsampler named "vit" or "true".
    """
    taken = {"vit", "true"} & set(upsamplers)
    if taken:
        raise ValueError(f"{sorted(taken)} are the ViT's own maps: name the upsampler otherwise.")
    unit = extractor.patch_size * 2**steps
    height, width = images.shape[-2:]
    if height % unit or width % unit:
        raise ValueError(
            f"The images are {height}×{width} pixels; to be reduced {2**steps} times to whole patches of "
            f"{extractor.patch_size}, their sides have to be multiples of {unit} (whole_patches resizes to that)."
        )
    with inference_context(extractor):
        reduced = resize_images(images, (height // 2**steps, width // 2**steps))
        features = extractor.extract(reduced)
        maps = {"vit": features}
        for name, upsampler in upsamplers.items():
            with inference_context(upsampler):
                maps[name] = upsampler.upsample(reduced, features, steps)
        maps["true"] = extractor.extract(images)
    return maps


def similarity_to(features: Tensor, point: tuple[float, float], image_size: tuple[int, int]) -> Tensor:
    """Cosine similarity of each cell of a map to the cell in which a point of the image lies.

    Args:
        features: (C, h, w), of the whole image, at whatever size the ViT saw it.
        point: (x, y) in pixels of the image, from 0 at the left and at the top.
        image_size: (height, width) of the image that the point is in.

    Returns:
        (h, w) in float32, between -1 and 1; 1 at the point.

    Raises:
        ValueError: the point is outside the image.
    """
    check_point(point, image_size)
    (x, y), (height, width) = point, image_size
    rows, columns = features.shape[1:]
    features = features.float()
    vector = features[:, int(y * rows / height), int(x * columns / width)]
    return F.cosine_similarity(features, vector[:, None, None], dim=0)


def check_point(point: tuple[float, float], image_size: tuple[int, int]) -> None:
    """Raises ValueError where (x, y) is outside an image of (height, width) pixels."""
    (x, y), (height, width) = point, image_size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"The point {x:g},{y:g} is outside the image of {width}×{height} pixels: x is 0 to {width - 1} from the "
            f"left, y is 0 to {height - 1} from the top."
        )


def save_feature_maps(
    path: str | os.PathLike,
    maps: Mapping[str, Tensor],
    image: np.ndarray,
    original_size: tuple[int, int],
    point: tuple[float, float] | None = None,
) -> None:
    """Writes an ``.npz`` with the maps of one image, whole or not at all.

    Its arrays are each map under its own name, (C, h, w) in float32; ``image``; ``original_size``, (2,) int64; and with
    a point ``point``, (2,) float64, and ``similarity_NAME`` for each map, (h, w) float32, of :func:`similarity_to`.

    Args:
        path: of the file.
        maps: names to (C, h, w) on the CPU.
        image: (H, W, 3) uint8 in RGB, as the ViT saw it.
        original_size: (height, width) of the image before it was resized.
        point: (x, y) in pixels of that.

    Raises:
        ValueError: the point is outside the image.
    """
    arrays = {name: map_.float().numpy() for name, map_ in maps.items()}
    arrays |= {"image": image, "original_size": np.array(original_size, np.int64)}
    if point is not None:
        arrays["point"] = np.array(point, np.float64)
        for name, map_ in maps.items():
            arrays[f"similarity_{name}"] = similarity_to(map_, point, original_size).numpy()
    write_atomically(path, lambda file: np.savez(file, **arrays))


def principal_colours(features: Tensor) -> Callable[[Tensor], np.ndarray]:
    """From (C, h, w), a function that maps any (C, ?, ?) to (?, ?, 3) uint8 colours along its principal axes."""
    flat = features.flatten(1).T.float()  # (h·w, C)
    centre = flat.mean(0)
    _, _, axes = torch.linalg.svd(flat - centre, full_matrices=False)
    projected = (flat - centre) @ axes[:3].T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def colour(maps: Tensor) -> np.ndarray:
        values = (maps.flatten(1).T.float() - centre) @ axes[:3].T
        values = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return (values.reshape(*maps.shape[1:], 3).numpy() * 255).astype(np.uint8)

    return colour
