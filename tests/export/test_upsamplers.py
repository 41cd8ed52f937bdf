"""Features with upsamplers that export knows nothing about, in files for any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lift_det import BilinearUpsample, FeatureExtractor
from lift_det.export import BackboneModule, FeaturesModule, LiFTModule, export_onnx, export_program
from lift_det.modeling import ExternalUpsampler, FeatureUpsampler
from tests.export.tiny_models import lift, pyramid, shaken, timm_vit, vit

pytestmark = pytest.mark.usefixtures("one_thread")


class _Gated(FeatureUpsampler):
    """No more than what the slot asks for."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(3, 1, kernel_size=1)

    def forward(self, images, features, output_size=None):
        size = output_size or (2 * features.shape[-2], 2 * features.shape[-1])
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return F.interpolate(features, size=size, mode="nearest") * self.gate(images).sigmoid()


class _LikeAnyUp(nn.Module):
    def forward(self, image, features, output_size):
        guide = F.adaptive_avg_pool2d(image, 1).sum(dim=1, keepdim=True)
        return F.interpolate(features, size=output_size, mode="bilinear") + guide


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("upsampler", [_Gated, lambda: ExternalUpsampler(_LikeAnyUp())], ids=["subclass", "external"])
def test_features_of_any_upsampler(upsampler, suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    module = FeaturesModule(FeatureExtractor(timm_vit(14), shaken(upsampler()), steps=2).eval())
    export = export_onnx if suffix == "onnx" else export_program
    results = export(module, tmp_path / f"features.{suffix}", [(56, 84), (84, 42), (112, 112)])
    assert len({result.shape[2:] for result in results}) == 3
    assert max(result.absolute for result in results) < 2e-5
    assert module.facts["upsampler"] == type(module.extractor.lift).__name__


def test_a_lift_sees_the_whole_image_behind_a_vit_of_patches_of_14_pixels(tmp_path):
    """Patches are 32 pixels of the image, which LiFT reduces to 14 and enlarges to 16."""
    module = BackboneModule(pyramid(timm_vit(14), 7 / 16), (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    results = export_program(module, tmp_path / "backbone.pt2", [(256, 192)])
    assert len({result.shape[2:] for result in results}) == 3 and max(r.absolute for r in results) < 2e-5
    assert module.facts["lift.patch_size"] == "14" and module.facts["input_scale"] == "0.4375"


def test_features_of_a_vit_that_takes_bgr():
    statistics = {"pixel_mean": (10.0, 20.0, 30.0), "pixel_std": (50.0, 60.0, 70.0)}
    extractor = FeatureExtractor(vit(), lift(32, 8), **statistics, input_format="BGR").eval()
    module = FeaturesModule(extractor)
    assert module.facts["pixel_mean"] == "10 20 30"
    images = torch.rand(1, 3, 32, 48) * 255
    with torch.no_grad():
        torch.testing.assert_close(module(images), extractor(extractor.normalize(images))["last_feat"])


def test_an_upsampler_for_any_vit_is_exported_with_one():
    with pytest.raises(ValueError, match="BilinearUpsample does not say its in_channels and patch_size.*with its ViT"):
        LiFTModule(BilinearUpsample())
