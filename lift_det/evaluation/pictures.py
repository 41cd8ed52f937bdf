"""Pictures to look at: predictions beside the ground truth, and a ViT's features beside the lifted ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import Tensor, nn

from lift_det.modeling.features import FeatureExtractor
from lift_det.modeling.lift import FeatureUpsampler, bilinear_2x
from lift_det.modeling.pyramid import LiFTFeaturePyramid

from .feature_maps import principal_colours, upsampled_features

_CELL_HEIGHT = 384  # of one image in a picture, in pixels
_MARGIN = 6


def draw_predictions(
    model: nn.Module,
    dataset_dicts: Sequence[dict],
    metadata: Metadata,
    mapper: Callable[[dict], dict],
    path: str | os.PathLike,
    score_threshold: float = 0.5,
    columns: int = 2,
) -> None:
    """Writes a PNG in which every image stands twice: with its ground truth, then with what the model predicts.

    Args:
        model: a detector; left in the mode it was in.
        dataset_dicts: detectron2's, with annotations.
        metadata: of the data set, for the class names.
        mapper: makes the model's input of a dataset dict, as the test loader's does.
        path: of the PNG.
        score_threshold: predictions below it are not drawn.
        columns: pairs in a row.
    """
    cells = []
    for dataset_dict in dataset_dicts:
        cells += _predictions_cells(model, dataset_dict, metadata, mapper, score_threshold)
    _write_grid(cells, 2 * columns, path)


def picture_predictions(
    model: nn.Module,
    dataset_dict: dict,
    metadata: Metadata,
    mapper: Callable[[dict], dict],
    score_threshold: float = 0.5,
) -> np.ndarray:
    """One image twice, beside each other: with its ground truth, and with what the model predicts.

    Args:
        model, metadata, mapper, score_threshold: as :func:`draw_predictions` has them.
        dataset_dict: detectron2's, with annotations.

    Returns:
        (h, w, 3), RGB, uint8.
    """
    return _grid(_predictions_cells(model, dataset_dict, metadata, mapper, score_threshold), 2)


@torch.no_grad()
def draw_features(
    backbone: LiFTFeaturePyramid, images: Tensor, mean: Tensor, std: Tensor, path: str | os.PathLike
) -> None:
    """Writes a PNG with a row for each image: the image, its features, those upsampled bilinearly, the lifted ones.

    Colours are the first three principal components of the ViT's features of that image.

    Args:
        backbone: with a LiFT in it, ``steps`` of any number; bilinear upsampling goes as far.
        images: (N, 3, H, W), RGB on the 0 to 255 scale, of a size that the backbone takes.
        mean: (3, 1, 1) on that scale, as the detector has it.
        std: likewise.
        path: of the PNG.
    """
    with inference_context(backbone):
        bottom_up, lifted = backbone.forward_features((images - mean) / std)
    images, lifted, features = images.cpu(), lifted.cpu(), bottom_up[backbone.in_feature].cpu()
    bilinear = features
    for _ in range(backbone.steps):
        bilinear = bilinear_2x(bilinear)
    cells = []
    for i in range(len(images)):
        colour = principal_colours(features[i])
        cells.append(_titled(_enlarge(images[i].permute(1, 2, 0).numpy().astype(np.uint8)), "image"))
        for name, maps in (("ViT", features), ("bilinear", bilinear), ("LiFT", lifted)):
            title = f"{name} {maps.shape[-2]}x{maps.shape[-1]}"
            cells.append(_titled(_enlarge(colour(maps[i])), title))
    _write_grid(cells, 4, path)


@torch.no_grad()
def draw_upsampled(
    extractor: FeatureExtractor,
    upsamplers: Mapping[str, FeatureUpsampler],
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    steps: int,
    path: str | os.PathLike,
) -> None:
    """Writes a PNG with a row for each image: the image, the ViT's features of it reduced, upsampled, the true ones.

    Colours are the first three principal components of the true features of that image.

    Args:
        extractor: gives the features.
        upsamplers: names and what doubles the map, ``steps`` times each.
        images: (N, 3, H, W), RGB on the 0 to 255 scale; H and W multiples of ``2**steps`` patches.
        mean: (3, 1, 1) on that scale.
        std: likewise.
        steps: the ViT sees the images reduced ``2**steps`` times.
        path: of the PNG.
    """
    maps = upsampled_features(extractor, upsamplers, (images - mean) / std, steps)
    titles = {"vit": "ViT, image reduced", "true": "ViT, whole image"}
    cells = []
    for i in range(len(images)):
        colour = principal_colours(maps["true"][i].cpu())
        cells.append(_titled(_enlarge(images[i].permute(1, 2, 0).cpu().numpy().astype(np.uint8)), "image"))
        for name, map_ in maps.items():
            title = f"{titles.get(name, name)} {map_.shape[-2]}x{map_.shape[-1]}"
            cells.append(_titled(_enlarge(colour(map_[i].cpu())), title))
    _write_grid(cells, len(maps) + 1, path)


def _predictions_cells(
    model: nn.Module,
    dataset_dict: dict,
    metadata: Metadata,
    mapper: Callable[[dict], dict],
    score_threshold: float,
) -> list[np.ndarray]:
    """The ground truth's cell and the predictions'."""
    with inference_context(model), torch.no_grad():
        instances: Instances = model([mapper(dataset_dict)])[0]["instances"].to("cpu")
    if instances.has("pred_masks_rle"):  # the visualizer takes those, under the other name
        instances.pred_masks = instances.pred_masks_rle
    image = read_image(dataset_dict["file_name"], "RGB")
    scale = _CELL_HEIGHT / image.shape[0]
    truth = Visualizer(image, metadata, scale, ColorMode.IMAGE).draw_dataset_dict(dataset_dict)
    drawn = Visualizer(image, metadata, scale, ColorMode.IMAGE).draw_instance_predictions(
        instances[instances.scores >= score_threshold]
    )
    return [
        _titled(truth.get_image(), "ground truth"),
        _titled(drawn.get_image(), f"predicted, score >= {score_threshold:g}"),
    ]


def _enlarge(image: np.ndarray) -> np.ndarray:
    """To the height of a cell, showing every pixel as a square: nothing is to look smoother than it is."""
    width = round(image.shape[1] * _CELL_HEIGHT / image.shape[0])
    return cv2.resize(image, (width, _CELL_HEIGHT), interpolation=cv2.INTER_NEAREST)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((28, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, image])


def _write_grid(cells: Sequence[np.ndarray], columns: int, path: str | os.PathLike) -> None:
    if not cv2.imwrite(str(path), _grid(cells, columns)[:, :, ::-1]):
        raise OSError(f"The picture '{path}' could not be written.")


def _grid(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """(h, w, 3) RGB cells in rows on white; cells of a column are as wide as its widest."""
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(cells)))]
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    canvas = np.full((sum(h + _MARGIN for h in heights), sum(w + _MARGIN for w in widths), 3), 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for cell, width in zip(row, widths, strict=False):
            canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
            left += width + _MARGIN
        top += height + _MARGIN
    return canvas
