"""Drawings of feature maps, similarities, colours, and the maps as arrays in a file."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lift_det.visualization import draw_feature_maps, principal_colours, save_feature_maps, similarity_to

RED, BLUE = (200, 30, 30), (30, 30, 200)


def read_columns(path, columns):
    """The picture in RGB, and its columns."""
    picture = cv2.imread(str(path))[:, :, ::-1].astype(int)
    return picture, np.array_split(picture, columns, axis=1)


def test_a_column_for_each_map_and_a_row_for_the_point(tmp_path):
    torch.manual_seed(0)
    image = np.full((60, 90, 3), RED, np.uint8)
    true = torch.randn(8, 4, 6)
    maps = {"vit": true[:, ::2, ::2], "bilinear": torch.randn(8, 4, 6), "lift": true, "true": true}
    draw_feature_maps(image, maps, tmp_path / "plain.png")
    plain, (first, *columns) = read_columns(tmp_path / "plain.png", 5)
    assert (first == RED).all(-1).mean() > 0.5
    # equal maps look equal, others do not
    middle = slice(plain.shape[0] // 2 - 20, plain.shape[0] // 2 + 60)
    width = min(column.shape[1] for column in columns)
    bilinear, lift, true_ = (column[middle, 10 : width - 10] for column in columns[1:])
    assert np.abs(bilinear - true_).mean() > 20 and np.abs(lift - true_).mean() < 10

    draw_feature_maps(image, maps, tmp_path / "point.png", (45, 30))
    picture, _ = read_columns(tmp_path / "point.png", 5)
    assert picture.shape[0] == pytest.approx(2 * plain.shape[0], abs=1)
    # the image below is the same, except for the black and white mark in its middle
    below = picture[picture.shape[0] // 2 :, : picture.shape[1] // 6]
    rows, places = np.nonzero((below == RED).all(-1))
    y, x = (rows.min() + rows.max()) // 2, (places.min() + places.max()) // 2
    mark = below[y - 15 : y + 15, x - 15 : x + 15]
    assert mark.max(-1).min() < 60 and mark.min(-1).max() > 230


@pytest.mark.parametrize("shape", [(1, 1), (4, 400), (900, 2)])
def test_any_shape_of_image(tmp_path, shape):
    maps = {"vit": torch.randn(8, 1, 2), "true": torch.randn(8, 2, 4)}
    draw_feature_maps(np.zeros((*shape, 3), np.uint8), maps, tmp_path / "f.png", (0, 0))
    height, width = cv2.imread(str(tmp_path / "f.png")).shape[:2]
    assert 200 < height < 2000 and 400 < width < 3000


def test_a_row_for_each_image(tmp_path):
    torch.manual_seed(0)
    images = [np.full((60, 90, 3), colour, np.uint8) for colour in (RED, BLUE)]
    maps = [{"vit": torch.randn(8, 2, 3), "lift": torch.randn(8, 4, 6)} for _ in images]
    draw_feature_maps(images, maps, tmp_path / "both.png")
    picture, columns = read_columns(tmp_path / "both.png", 3)
    upper, lower = np.array_split(columns[0], 2)
    assert (upper == RED).all(-1).mean() > 0.4 and (lower == BLUE).all(-1).mean() > 0.4
    # each row has the colours of its ViT's map
    for image_maps, half in zip(maps, np.array_split(picture, 2), strict=True):
        expected = principal_colours(image_maps["vit"])(image_maps["lift"]).reshape(-1, 3)
        assert {tuple(c) for c in expected.tolist()} <= {tuple(c) for c in np.unique(half.reshape(-1, 3), axis=0)}
    with pytest.raises(ValueError, match="2 images"):
        draw_feature_maps(images, maps, tmp_path / "point.png", (45, 30))
    with pytest.raises(ValueError, match="90×60"):
        draw_feature_maps(images[0], maps[0], tmp_path / "point.png", (90, 30))
    assert not (tmp_path / "point.png").exists()


def test_similarity_is_to_the_cell_of_the_point():
    features = torch.randn(16, 3, 5)
    similarity = similarity_to(features, (99, 0), (30, 100))  # the upper right cell
    assert similarity.shape == (3, 5)
    expected = F.cosine_similarity(features, features[:, :1, 4:], dim=0)
    assert np.allclose(similarity, expected, atol=1e-6)
    assert similarity_to(features, (20, 10), (30, 100))[1, 1] == pytest.approx(1)
    assert similarity_to(features, (19.9, 9.9), (30, 100))[0, 0] == pytest.approx(1)
    for point in ((100, 0), (0, 30), (-1, 0)):
        with pytest.raises(ValueError, match="100×30"):
            similarity_to(features, point, (30, 100))


def test_equal_features_have_equal_colours():
    features = torch.randn(16, 6, 7)
    colour = principal_colours(features)
    colours = colour(features)
    assert colours.shape == (6, 7, 3) and colours.dtype == np.uint8
    assert np.array_equal(colour(features[:, 2:4, 1:3]), colours[2:4, 1:3])
    assert np.ptp(colours.reshape(-1, 3), axis=0).min() > 200


def test_arrays_in_a_file(tmp_path):
    maps = {"vit": torch.randn(4, 2, 3), "true": torch.randn(4, 4, 6).half()}
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    expected = {"vit": maps["vit"].numpy(), "true": maps["true"].float().numpy()}
    expected |= {"image": image, "original_size": [320, 480]}
    similarity = {f"similarity_{name}": similarity_to(maps[name], (100, 200), (320, 480)) for name in maps}
    for point, more in ((None, {}), ((100, 200), {"point": [100, 200], **similarity})):
        save_feature_maps(tmp_path / "maps.npz", maps, image, (320, 480), point)
        with np.load(tmp_path / "maps.npz") as saved:
            assert set(saved) == set(expected | more) and saved["true"].dtype == np.float32
            assert all(np.array_equal(saved[name], value) for name, value in (expected | more).items())
