"""Feature maps of a ViT made visible: as colours, as similarities to one cell, and as arrays in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from lift_det.files import write_atomically

from .figure_file import save_figure

_LABELS = {"vit": "ViT", "lift": "LiFT", "true": "ViT, whole image (true)"}
_CELL_INCHES = 2.6  # the longer side of an image in the picture
_TITLE_INCHES = 0.65
_COLOUR_BAR_INCHES = 0.8
_DPI = 150


def draw_feature_maps(
    images: np.ndarray | Sequence[np.ndarray],
    maps: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    path: str | os.PathLike,
    point: tuple[float, float] | None = None,
) -> None:
    """Draws images and their feature maps in colours, a row for each image; with a point, similarities below them.

    Colours are the first three principal components of an image's ``"true"`` map, else of its ``"vit"`` map, else of
    its first, and the same for all its maps, so that they can be compared. Similarities are cosines, of each map to its
    own cell at the point, in one scale. Every cell is drawn as one rectangle: nothing is to look smoother than it is.
    Above each map as large as the true one stands the mean cosine similarity of its cells to the true ones.

    Args:
        images: (H, W, 3) uint8 in RGB, of any size; one or several.
        maps: of the image, or of each image: names to (C, h, w), as of one item of
            :func:`lift_det.modeling.upsampled_features`. All images have maps of the same names.
        path: of the picture (.png, .pdf, .svg), written atomically.
        point: (x, y) in pixels of the image, where there is one.

    Raises:
        ValueError: the point is outside the image, there is a point and several images, or an unknown ending.
    """
    if isinstance(images, np.ndarray):
        images, maps = [images], [maps]
    if point is not None:
        if len(images) > 1:
            raise ValueError(f"A point is in one image; got {len(images)} images.")
        check_point(point, images[0].shape[:2])
    sizes = [_cell_size(image) for image in images]
    heights = [height + _TITLE_INCHES for height, _ in sizes] * (1 if point is None else 2)
    columns = 1 + len(maps[0])
    width = columns * max(width for _, width in sizes) + (0 if point is None else _COLOUR_BAR_INCHES)
    figure = Figure(figsize=(width, sum(heights)), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.02)
    rows = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in rows.flat:
        axes.set_axis_off()
    for row, image, image_maps in zip(rows, images, maps, strict=False):
        _draw_colours(row, image, image_maps)
    if point is not None:
        heat = _draw_similarities(rows[1], images[0], maps[0], point)
        bar = figure.colorbar(heat, ax=rows[1].tolist(), fraction=0.03, pad=0.01, extend="min")
        bar.ax.tick_params(labelsize=7)
        bar.solids.set_alpha(1)
    save_figure(figure, path)


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


def _cell_size(image: np.ndarray) -> tuple[float, float]:
    """(height, width) of an image in the picture, in inches; a long strip leaves place for titles."""
    height, width = (side / max(image.shape[:2]) for side in image.shape[:2])
    return _CELL_INCHES * max(height, 0.2), _CELL_INCHES * max(width, 0.6)


def _draw_colours(row: Sequence[Axes], image: np.ndarray, maps: Mapping[str, Tensor]) -> None:
    """Fills a row with an image and its maps in colours."""
    height, width = image.shape[:2]
    _show(row[0], _reduced(image), image)
    row[0].set_title(f"image\n{width}×{height} pixels" + ("\n" if "true" in maps else ""), fontsize=8)
    colour = principal_colours(maps[_reference(maps)])
    for axes, (name, map_) in zip(row[1:], maps.items(), strict=True):
        _show(axes, colour(map_), image)
        axes.set_title(_title(name, maps), fontsize=8)


def _draw_similarities(
    row: Sequence[Axes], image: np.ndarray, maps: Mapping[str, Tensor], point: tuple[float, float]
) -> AxesImage:
    """Fills a row with an image and the similarity of each map to its cell at the point; returns one of them."""
    similarities = {name: similarity_to(map_, point, image.shape[:2]) for name, map_ in maps.items()}
    shown = _reduced(image)
    _show(row[0], shown, image)
    row[0].set_title(f"cosine similarity to\nthe cell at {point[0]:g},{point[1]:g}", fontsize=8)
    # one scale for all; the lowest hundredth of the reference may fall below it
    lowest = float(similarities[_reference(maps)].quantile(0.01))
    for axes, similarity in zip(row[1:], similarities.values(), strict=True):
        _show(axes, shown.mean(axis=2), image, cmap="gray", vmin=0, vmax=255)
        heat = _show(axes, similarity.numpy(), image, alpha=0.75, cmap="inferno", vmin=lowest, vmax=1)
    for axes in row:
        _mark(axes, point)
    return heat


def _show(axes: Axes, array: np.ndarray, image: np.ndarray, **kwargs: Any) -> AxesImage:
    """Draws an array of any size over the whole image, in pixels of the image."""
    height, width = image.shape[:2]
    return axes.imshow(array, extent=(0, width, height, 0), interpolation="nearest", aspect="equal", **kwargs)


def _reference(maps: Mapping[str, Tensor]) -> str:
    """The name of the map that the others are compared with."""
    return next((name for name in ("true", "vit") if name in maps), next(iter(maps)))


def _title(name: str, maps: Mapping[str, Tensor]) -> str:
    """A map's name, its size, width first as for images, and how near it is to the true one."""
    map_, true = maps[name], maps.get("true")
    label = "ViT, image reduced" if name == "vit" and true is not None else _LABELS.get(name, name)
    title = f"{label}\n{map_.shape[2]}×{map_.shape[1]} cells"
    if true is None:
        return title
    if name == "true" or map_.shape != true.shape:
        return f"{title}\n"  # so that the lines above stand at one height
    return f"{title}\ncosine to true {float(F.cosine_similarity(map_.float(), true.float(), dim=0).mean()):.3f}"


def _mark(axes: Axes, point: tuple[float, float]) -> None:
    """A cross in a ring, black on white, so that it is seen on any colour."""
    for colour, width in (("white", 2.8), ("black", 1.0)):
        for marker, size in (("o", 11), ("+", 6)):
            axes.plot(
                point[0] + 0.5,  # the middle of the pixel
                point[1] + 0.5,
                marker,
                markersize=size,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=width,
                clip_on=False,  # whole at the border, too
            )


def _reduced(image: np.ndarray) -> np.ndarray:
    """At most twice as large as it is drawn, averaged over what is left out, which imshow does not."""
    scale = 2 * _CELL_INCHES * _DPI / max(image.shape[:2])
    if scale >= 1:
        return image
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
