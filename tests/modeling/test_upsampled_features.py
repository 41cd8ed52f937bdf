"""Several upsamplings of the same features, and the features that a trained model upsamples."""

import dataclasses

import numpy as np
import pytest
import torch

from lift_det import BilinearUpsample, FeatureExtractor, LiFT, LiFTFeaturePyramid, TimmViT, ViT, load_lift, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import upsampled_features, whole_patches
from lift_det.modeling.upsamplers.base import resize

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
        assert torch.equal(maps["vit"], net.feature_map(resize(images, (16, 24))))
    assert torch.equal(maps["bilinear"], resize(maps["vit"], (8, 12)))
    # an untrained residual LiFT is bilinear in each doubling
    assert torch.allclose(maps["lift"], resize(resize(maps["vit"], (4, 6)), (8, 12)), atol=1e-5)


def test_sizes_and_names_that_do_not_fit():
    extractor = FeatureExtractor(_vit())
    with pytest.raises(ValueError, match="multiples of 16"):
        upsampled_features(extractor, {}, torch.zeros(1, 3, 64, 72))
    with pytest.raises(ValueError, match="'true'"):
        upsampled_features(extractor, {"true": BilinearUpsample()}, torch.zeros(1, 3, 64, 64))


class _Model(torch.nn.Module):
    """What a detector and LiFT's training have in common."""

    def __init__(self, backbone, input_format):
        super().__init__()
        self.backbone, self.input_format = backbone, input_format
        self.register_buffer("pixel_mean", torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_of_model_normalises_and_orders_channels_as_the_model_does(channels):
    net = _vit()
    detector = _Model(LiFTFeaturePyramid(net, LiFT(32, 8), "last_feat", 8), channels)
    extractor = FeatureExtractor.of_model(detector)
    assert extractor.net is net and extractor.lift is detector.backbone.lift
    images = torch.randint(256, (2, 3, 64, 64)).float()  # RGB
    ordered = images if channels == "RGB" else images.flip(1)
    torch.testing.assert_close(extractor.normalize(images), (ordered - detector.pixel_mean) / detector.pixel_std)


def test_of_model_takes_the_trainings_layer_and_refuses_another_lift(tmp_path):
    net = _vit()
    lift = LiFT(32, 8)
    training = _Model(FeatureExtractor(net, lift, layer=0, facet="key"), "RGB")
    extractor = FeatureExtractor.of_model(training)
    assert (extractor.layer, extractor.facet) == (0, "key")

    spec = training.backbone.feature_spec()
    save_lift(lift, tmp_path / "own.safetensors", spec.to_metadata())
    own = load_lift(tmp_path / "own.safetensors")
    assert FeatureExtractor.of_model(training, own).lift is own
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight.mul_(1.5)  # other weights under the same name
    with pytest.raises(CheckpointError, match="weights: trained with"):
        FeatureExtractor.of_model(training, load_lift(tmp_path / "own.safetensors"))
    save_lift(lift, tmp_path / "other.safetensors", dataclasses.replace(spec, facet="token").to_metadata())
    with pytest.raises(CheckpointError, match="facet: trained with 'token', given 'key'"):
        FeatureExtractor.of_model(training, load_lift(tmp_path / "other.safetensors"))


def test_models_and_vits_that_lack_something():
    with pytest.raises(ValueError, match="detector with lift_det's"):
        FeatureExtractor.of_model(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="statistics"):
        FeatureExtractor(_vit()).normalize(torch.zeros(1, 3, 64, 64))


def test_normalize_takes_any_dtype_and_gives_the_vits():
    net = TimmViT("vit_tiny_patch16_224", depth=1)
    extractor = FeatureExtractor(net, pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = extractor.normalize(images.float())
    assert torch.equal(extractor.normalize(images), expected)
    assert expected[0, 0, 0, 0] == pytest.approx((float(images[0, 0, 0, 0]) - 123.675) / 58.395)
    half = extractor.half()
    assert half.normalize(images).dtype == torch.float16
    assert half(half.normalize(images))["last_feat"].dtype == torch.float16
