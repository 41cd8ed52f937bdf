"""The maps of `lift-det features`: sizes, which is which, similarities, and what is written."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lift_det import BilinearUpsample, FeatureExtractor, LiFT, LiFTFeaturePyramid, ViT
from lift_det.checkpoint import CheckpointError
from lift_det.evaluation import FeatureViewer, save_feature_maps, similarity_to, upsampled_features
from lift_det.evaluation.feature_maps import principal_colours, whole_patches
from lift_det.modeling import load_lift, save_lift
from lift_det.modeling.lift import resize_images

pytestmark = pytest.mark.usefixtures("one_thread")


def _vit():
    torch.manual_seed(0)
    return ViT(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=64)


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        ((448, 448), 1, (448, 448)),
        ((3000, 4000), 1, (392, 504)),  # 388 and 517 to multiples of 28
        ((375, 500), 2, (392, 504)),  # of 56
        ((1, 1), 1, (448, 448)),
        ((10, 4000), 1, (28, 8960)),  # a strip costs as much as a square
    ],
)
def test_images_are_resized_to_whole_patches(shape, steps, expected):
    images = whole_patches(np.full((*shape, 3), 200, np.uint8), 14, steps)
    assert images.shape == (1, 3, *expected) and images.dtype == torch.float32
    assert torch.allclose(images, torch.full_like(images, 200.0), atol=0.01)


def test_each_map_is_what_its_name_says():
    net = _vit()
    extractor = FeatureExtractor(net).train()
    images = torch.randn(2, 3, 64, 96)
    maps = upsampled_features(extractor, {"bilinear": BilinearUpsample(), "lift": LiFT(32, 8)}, images, steps=2)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "vit": (2, 32, 2, 3),
        "bilinear": (2, 32, 8, 12),
        "lift": (2, 32, 8, 12),
        "true": (2, 32, 8, 12),
    }
    assert extractor.training and not maps["true"].requires_grad
    with torch.no_grad():
        net.eval()
        assert torch.equal(maps["true"], net.feature_map(images))
        assert torch.equal(maps["vit"], net.feature_map(resize_images(images, (16, 24))))
    # an untrained residual LiFT is bilinear
    assert torch.allclose(maps["lift"], maps["bilinear"], atol=1e-5)


def test_sizes_and_names_that_do_not_fit():
    extractor = FeatureExtractor(_vit())
    with pytest.raises(ValueError, match="multiples of 16"):
        upsampled_features(extractor, {}, torch.zeros(1, 3, 64, 72))
    with pytest.raises(ValueError, match="'true'"):
        upsampled_features(extractor, {"true": BilinearUpsample()}, torch.zeros(1, 3, 64, 64))


def test_similarity_is_to_the_cell_of_the_point():
    features = torch.randn(16, 3, 5)
    similarity = similarity_to(features, (99, 0), (30, 100))  # the upper right cell
    assert similarity.shape == (3, 5) and similarity[0, 4] == pytest.approx(1)
    expected = F.cosine_similarity(features[:, 2, 1], features[:, 0, 4], dim=0)
    assert similarity[2, 1] == pytest.approx(float(expected), abs=1e-6)
    assert similarity_to(features, (20, 10), (30, 100))[1, 1] == pytest.approx(1)
    assert similarity_to(features, (19.9, 9.9), (30, 100))[0, 0] == pytest.approx(1)
    for point in ((100, 0), (0, 30), (-1, 0)):
        with pytest.raises(ValueError, match="100×30"):
            similarity_to(features, point, (30, 100))


def test_colours_are_one_basis():
    features = torch.randn(16, 6, 7)
    colour = principal_colours(features)
    colours = colour(features)
    assert colours.shape == (6, 7, 3) and colours.dtype == np.uint8
    # the same features have the same colours wherever they stand
    assert np.array_equal(colour(features[:, 2:4, 1:3]), colours[2:4, 1:3])
    assert np.ptp(colours.reshape(-1, 3), axis=0).min() > 200


def test_arrays_come_back(tmp_path):
    maps = {"vit": torch.randn(4, 2, 3), "true": torch.randn(4, 4, 6).half()}
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    save_feature_maps(tmp_path / "with.npz", maps, image, (320, 480), (100, 200))
    with np.load(tmp_path / "with.npz") as saved:
        assert set(saved) == {"vit", "true", "image", "original_size", "point", "similarity_vit", "similarity_true"}
        assert saved["vit"].dtype == saved["true"].dtype == saved["similarity_true"].dtype == np.float32
        assert np.array_equal(saved["vit"], maps["vit"].numpy()) and np.array_equal(saved["image"], image)
        assert saved["point"].tolist() == [100, 200] and saved["original_size"].tolist() == [320, 480]
        assert np.array_equal(saved["similarity_vit"], similarity_to(maps["vit"], (100, 200), (320, 480)))
    save_feature_maps(tmp_path / "without.npz", maps, image, (320, 480))
    with np.load(tmp_path / "without.npz") as saved:
        assert set(saved) == {"vit", "true", "image", "original_size"}


class _Model(torch.nn.Module):
    """What a detector and LiFT's training have in common."""

    def __init__(self, backbone, input_format):
        super().__init__()
        self.backbone, self.input_format = backbone, input_format
        self.register_buffer("pixel_mean", torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))


def test_viewer_normalises_and_orders_channels_as_the_model_does():
    net = _vit()
    detector = LiFTFeaturePyramid(net, LiFT(32, 8), "last_feat", 8, (1, 0.5))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for channels in ("RGB", "BGR"):
        viewer = FeatureViewer.of_model(_Model(detector, channels))
        seen, maps = viewer(image, size=64)
        assert np.array_equal(seen, image) and list(maps) == ["vit", "bilinear", "lift", "true"]
        ordered = image if channels == "RGB" else image[:, :, ::-1]
        normalised = (ordered - np.float32([10, 20, 30])) / np.float32([1, 2, 4])
        with torch.no_grad():
            expected = net.eval().feature_map(torch.from_numpy(normalised).permute(2, 0, 1)[None])
        torch.testing.assert_close(maps["true"], expected[0])
    bilinear = LiFTFeaturePyramid(net, BilinearUpsample(), "last_feat", 8, (1, 0.5))
    assert list(FeatureViewer.of_model(_Model(bilinear, "RGB"))(image, size=64)[1]) == ["vit", "bilinear", "true"]


def test_viewer_takes_the_trainings_layer_and_refuses_another_lift(tmp_path):
    net = _vit()
    lift = LiFT(32, 8)
    training = _Model(FeatureExtractor(net, lift, layer=0, facet="key"), "RGB")
    viewer = FeatureViewer.of_model(training)
    assert (viewer.extractor.layer, viewer.extractor.facet) == (0, "key")

    save_lift(lift, tmp_path / "own.safetensors", training.backbone.settings())
    FeatureViewer.of_model(training, load_lift(tmp_path / "own.safetensors"))
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight.mul_(1.5)  # other weights under the same name
    with pytest.raises(CheckpointError, match="weights: trained with"):
        FeatureViewer.of_model(training, load_lift(tmp_path / "own.safetensors"))
    save_lift(lift, tmp_path / "other.safetensors", {**training.backbone.settings(), "facet": "token"})
    with pytest.raises(CheckpointError, match="facet: trained with 'token', given 'key'"):
        FeatureViewer.of_model(training, load_lift(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="detector with lift_det's"):
        FeatureViewer.of_model(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="statistics"):
        FeatureViewer(FeatureExtractor(net))
