"""The picture of `lift-det features`."""

import cv2
import numpy as np
import pytest
import torch

from lift_det.evaluation import draw_feature_grid


def _cells(path, columns):
    """The picture's columns, in RGB."""
    picture = cv2.imread(str(path))[:, :, ::-1].astype(int)
    return picture, np.array_split(picture, columns, axis=1)


def test_a_column_for_each_map_and_a_row_for_the_point(tmp_path):
    torch.manual_seed(0)
    image = np.full((60, 90, 3), (200, 30, 30), np.uint8)
    true = torch.randn(8, 4, 6)
    maps = {"vit": true[:, ::2, ::2], "bilinear": torch.randn(8, 4, 6), "lift": true, "true": true}
    draw_feature_grid(image, maps, tmp_path / "plain.png")
    plain, (first, *columns) = _cells(tmp_path / "plain.png", 5)
    assert (first == (200, 30, 30)).all(-1).mean() > 0.5
    # the same map looks the same, another one does not
    middle = slice(plain.shape[0] // 2 - 20, plain.shape[0] // 2 + 60)
    width = min(column.shape[1] for column in columns)
    bilinear, lift, true_ = (column[middle, 10 : width - 10] for column in columns[1:])
    assert np.abs(bilinear - true_).mean() > 20 and np.abs(lift - true_).mean() < 10

    draw_feature_grid(image, maps, tmp_path / "point.png", (45, 30))
    picture, _ = _cells(tmp_path / "point.png", 5)
    assert picture.shape[0] > 1.8 * plain.shape[0] and picture.shape[1] > plain.shape[1]
    # the image below is the same, but for the mark in its middle: black on white
    below = picture[int(picture.shape[0] * 0.6) :, : picture.shape[1] // 6]
    rows, places = np.nonzero((below == (200, 30, 30)).all(-1))
    y, x = (rows.min() + rows.max()) // 2, (places.min() + places.max()) // 2
    middle = below[y - 15 : y + 15, x - 15 : x + 15]
    assert middle.max(-1).min() < 60 and middle.min(-1).max() > 230
    with pytest.raises(ValueError, match="outside"):
        draw_feature_grid(image, maps, tmp_path / "outside.png", (90, 30))
    assert not (tmp_path / "outside.png").exists()


@pytest.mark.parametrize("shape", [(1, 1), (4, 400), (900, 2)])
def test_any_shape_of_image(tmp_path, shape):
    maps = {"vit": torch.randn(8, 1, 2), "bilinear": torch.randn(8, 2, 4), "true": torch.randn(8, 2, 4)}
    draw_feature_grid(np.zeros((*shape, 3), np.uint8), maps, tmp_path / "f.png", (0, 0))
    height, width = cv2.imread(str(tmp_path / "f.png")).shape[:2]
    assert 200 < height < 2000 and 600 < width < 3000
