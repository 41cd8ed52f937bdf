"""The picture that `lift-det features` writes: a ViT's maps of one image in a row, and how alike their cells are."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lift_det.files import write_atomically

from .feature_maps import principal_colours, similarity_to

_LABELS = {"vit": "ViT, image reduced", "lift": "LiFT", "true": "ViT, whole image (true)"}
_CELL_INCHES = 2.6  # the longer side of an image in the picture
_DPI = 150


def draw_feature_grid(
    image: np.ndarray,
    maps: Mapping[str, Tensor],
    path: str | os.PathLike,
    point: tuple[float, float] | None = None,
) -> None:
    """Writes a PNG: the image and its maps in colours; with a point, below them, how alike each cell is to its cell.

    Colours are the first three principal components of the true map, the same for all maps, so that they can be
    compared. Similarities are cosines, of each map to its own cell at the point, in one scale. Every cell is drawn as
    one rectangle: nothing is to look smoother than it is. Beside each map as large as the true one stands the mean
    cosine similarity of its cells to the true ones.

    Args:
        image: (H, W, 3) uint8 in RGB, of any size.
        maps: of :func:`upsampled_features`, for this image alone: names to (C, h, w) on the CPU; ``"true"`` is one.
        path: of the PNG, which is whole or not there.
        point: (x, y) in pixels of ``image``.

    Raises:
        ValueError: the point is outside the image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    similarities = {}
    if point is not None:
        similarities = {name: similarity_to(map_, point, (height, width)) for name, map_ in maps.items()}
    rows, columns = 1 + bool(similarities), 1 + len(maps)
    # beside and below a long strip there is room for titles
    cell = [_CELL_INCHES * max(side / max(width, height), least) for side, least in ((width, 0.6), (height, 0.2))]
    figure = Figure(figsize=(columns * cell[0] + 0.8 * bool(similarities), rows * (cell[1] + 0.65)), dpi=_DPI)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.02)
    FigureCanvasAgg(figure)  # no window, no global state
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    # all in pixels of the image, whatever their own size
    place = {"extent": (0, width, height, 0), "interpolation": "nearest", "aspect": "equal"}

    shown = _reduced(image)
    grid[0, 0].imshow(shown, **place)
    grid[0, 0].set_title(f"image\n{width}×{height} pixels\n", fontsize=8)
    colour = principal_colours(maps["true"])
    for axes, (name, map_) in zip(grid[0, 1:], maps.items(), strict=True):
        axes.imshow(colour(map_), **place)
        axes.set_title(f"{_LABELS.get(name, name)}\n{_about(name, maps)}", fontsize=8)
    if similarities:
        grid[1, 0].imshow(shown, **place)
        grid[1, 0].set_title(f"cosine similarity to\nthe cell at {point[0]:g},{point[1]:g}", fontsize=8)
        # one scale for all; the lowest hundredth of the true map may fall below it
        scale = {"vmin": float(similarities["true"].quantile(0.01)), "vmax": 1.0, "cmap": "inferno"}
        grey = shown.mean(axis=2)
        for axes, similarity in zip(grid[1, 1:], similarities.values(), strict=True):
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255, **place)
            heat = axes.imshow(similarity.numpy(), alpha=0.75, **scale, **place)
        for axes in grid[1]:
            _mark(axes, point)
        bar = figure.colorbar(heat, ax=grid[1].tolist(), fraction=0.03, pad=0.01, extend="min")
        bar.ax.tick_params(labelsize=7)
        bar.solids.set_alpha(1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _about(name: str, maps: Mapping[str, Tensor]) -> str:
    """A map's size, width first as for images, and how near it is to the true one."""
    map_, true = maps[name], maps["true"]
    text = f"{map_.shape[2]}×{map_.shape[1]} cells\n"
    if map_.shape == true.shape and name != "true":
        text += f"cosine to true {float(F.cosine_similarity(map_.float(), true.float(), dim=0).mean()):.3f}"
    return text


def _mark(axes, point: tuple[float, float]) -> None:
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
    import cv2

    scale = 2 * _CELL_INCHES * _DPI / max(image.shape[:2])
    if scale >= 1:
        return image
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
