"""What is traced in place of the fast ways computes the same, at every size, with the same weights."""

import pytest
import timm
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

from lift_det import TimmViT
from lift_det.export import traceable
from tests.export.tiny_models import extractor, lift, pyramid, timm_vit, vit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("input_scale", [1.0, 0.5])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 160)])
def test_vit_with_windows_in_a_pyramid(input_scale, size):
    backbone = pyramid(vit(), input_scale)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, given = backbone(images), traceable(backbone)(images)
    assert list(given) == list(expected)
    for name, level in expected.items():
        torch.testing.assert_close(given[name], level, atol=2e-5, rtol=0)


def test_the_copy_shares_its_weights_and_leaves_the_model_as_it_was():
    backbone = pyramid(vit(), 0.5)
    names = list(backbone.state_dict())
    classes = [type(module) for module in backbone.modules()]
    copy = traceable(backbone)
    assert {p.data_ptr() for p in copy.parameters()} <= {p.data_ptr() for p in backbone.parameters()}
    assert list(backbone.state_dict()) == names and backbone.input_scale == 0.5
    assert [type(module) for module in backbone.modules()] == classes and backbone.net.pos_embed is not None


@pytest.mark.parametrize("size", [(28, 42), (448, 518)])
def test_enlarging_for_patches_of_14_pixels_is_exact(size):
    upsampler = lift(8, 14)
    images, features = torch.randn(1, 3, *size), torch.randn(1, 8, size[0] // 14, size[1] // 14)
    with torch.no_grad():
        expected = upsampler.to(torch.float64).upsample(images.double(), features.double(), 2)
        given = traceable(upsampler.float()).upsample(images, features, 2)
    assert (given - expected).abs().max() < 2e-5


def test_rotary_positions_of_dinov3():
    model = timm.create_model("vit_small_patch16_dinov3", depth=1).eval()
    assert isinstance(model.rope, RotaryEmbeddingDinoV3)
    net = TimmViT("vit_small_patch16_dinov3", depth=1).eval()
    copy = traceable(net)
    assert type(copy.vit.rope) is not RotaryEmbeddingDinoV3
    for shape in [(3, 5), (7, 2)]:
        torch.testing.assert_close(copy.vit.rope.get_embed(shape), net.vit.rope.get_embed(shape), atol=1e-6, rtol=0)


def test_timm_vits_trace_as_they_are():
    net = timm_vit()
    assert [type(module) for module in traceable(net).modules()] == [type(module) for module in net.modules()]
    images = torch.randn(1, 3, 70, 42)
    model = extractor()
    with torch.no_grad():
        torch.testing.assert_close(traceable(model)(images), model(images), atol=2e-5, rtol=0)
