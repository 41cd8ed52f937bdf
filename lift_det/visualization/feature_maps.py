"""Drawings of feature maps and of their similarity to a point."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from lift_det.files import write_atomically

from .curves import save_figure

_LABELS = {"vit": "ViT", "lift": "LiFT", "true": "ViT, whole image (true)"}
_WIDTH, _TITLE = 2.6, 0.65  # inches, of an image and above it


def draw_feature_maps(
    images: np.ndarray | Sequence[np.ndarray],
    maps: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    path: str | os.PathLike,
    point: tuple[float, float] | None = None,
) -> None:
    """Draws images and their feature maps, one image per row. With a point, a second row shows similarities.

    Colours are the first three principal components of the ``"true"`` map, else of the ``"vit"`` map, else of the first
    map. All maps of an image share them. The second row shows the cosine similarity of each cell to the cell at the
    point, in the same map. Cells are not interpolated. Titles of maps that are as large as the true map show their mean
    cosine similarity to it.

    Args:
        images: one or several images, (H, W, 3) uint8 in RGB, of any size.
        maps: for each image, (C, h, w) maps by name, as from :func:`lift_det.modeling.upsampled_features`. The names
            are the same for all images.
        path: of the drawing (.png, .pdf or .svg); written atomically.
        point: (x, y) in pixels of the image; only for one image.

    Raises:
        ValueError: the point is outside the image, there is a point and several images, or the suffix of ``path`` is
            unknown.
    """
    if isinstance(images, np.ndarray):
        images, maps = [images], [maps]
    images, rows = list(images), []
    for image, image_maps in zip(images, maps, strict=True):
        colour = principal_colours(_reference(image_maps))
        row = [(colour(map_), _title(name, image_maps)) for name, map_ in image_maps.items()]
        rows.append([(image, f"image\n{image.shape[1]}×{image.shape[0]} pixels"), *row])
    lowest = None
    if point is not None:
        if len(images) > 1:
            raise ValueError(f"A point needs exactly one image, got {len(images)} images.")
        lowest = float(similarity_to(_reference(maps[0]), point, image.shape[:2]).quantile(0.01))
        row = [(similarity_to(map_, point, image.shape[:2]), "") for map_ in maps[0].values()]
        rows.append([(image, f"cosine similarity to\nthe cell at {point[0]:g},{point[1]:g}"), *row])
        images *= 2

    heights = [_TITLE + _WIDTH * min(max(image.shape[0] / image.shape[1], 0.2), 2) for image in images]
    figure = Figure(figsize=(len(rows[0]) * _WIDTH, sum(heights)), dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heights)
    for axes_row, row, image in zip(grid, rows, images, strict=True):
        for axes, (array, title) in zip(axes_row, row, strict=True):
            interpolation = "auto" if array is image else "nearest"
            extent = (0, image.shape[1], image.shape[0], 0)  # coordinates are pixels of the image
            heat = axes.imshow(array, "inferno", vmin=lowest, vmax=1, interpolation=interpolation, extent=extent)
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    if point is not None:
        for axes in grid[1]:
            for colour, width in (("white", 3), ("black", 1)):  # visible on any background
                axes.plot(*np.add(point, 0.5), "o", ms=11, mfc="none", mec=colour, mew=width, clip_on=False)
        figure.colorbar(heat, ax=grid[1].tolist(), fraction=0.03, pad=0.01, extend="min")
    save_figure(figure, path)


def similarity_to(features: Tensor, point: tuple[float, float], image_size: tuple[int, int]) -> Tensor:
    """Returns the (h, w) cosine similarity of each cell of a feature map to the cell that contains a point.

    Args:
        features: (C, h, w) of the whole image.
        point: (x, y) in pixels of the image.
        image_size: (height, width) of the image.

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
    """Raises ValueError if (x, y) is outside an image of (height, width) pixels."""
    (x, y), (height, width) = point, image_size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"The point {x:g},{y:g} is outside the image of {width}×{height} pixels: expected x from 0 to {width - 1} "
            f"and y from 0 to {height - 1}."
        )


def save_feature_maps(
    path: str | os.PathLike,
    maps: Mapping[str, Tensor],
    image: np.ndarray,
    original_size: tuple[int, int],
    point: tuple[float, float] | None = None,
) -> None:
    """Writes the maps of an image to an ``.npz`` file, atomically.

    The file has each map by its name (float32), ``image`` and ``original_size``. With a point, it also has ``point``
    and for each map ``similarity_NAME`` (:func:`similarity_to`).

    Args:
        path: of the file.
        maps: (C, h, w) by name, on the CPU.
        image: (H, W, 3) uint8 in RGB, the input of the ViT.
        original_size: (height, width) of the image before it was resized.
        point: (x, y) in pixels of the original image.

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
    """Returns a function that maps (C, H, W) features to (H, W, 3) uint8 colours.

    The colours are the first three principal components of ``features``, (C, h, w).
    """
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


def _reference(maps: Mapping[str, Tensor]) -> Tensor:
    """Returns the map whose principal components are used."""
    return maps.get("true", maps.get("vit", next(iter(maps.values()))))


def _title(name: str, maps: Mapping[str, Tensor]) -> str:
    map_, true = maps[name], maps.get("true")
    label = "ViT, image reduced" if name == "vit" and true is not None else _LABELS.get(name, name)
    title = f"{label}\n{map_.shape[2]}×{map_.shape[1]} cells"
    if true is None or name == "true" or map_.shape != true.shape:
        return title
    return f"{title}\ncosine to true {float(F.cosine_similarity(map_.float(), true.float(), dim=0).mean()):.3f}"
