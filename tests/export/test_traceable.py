"""A traceable copy computes the same at every size, with the same weights."""

import pytest
import timm
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

from lift_det import TimmViT
from lift_det.export import traceable
from tests.export.tiny_models import lift, pyramid, vit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("input_scale", "size"), [(1.0, (64, 64)), (1.0, (128, 160)), (0.5, (96, 64))])
def test_vit_with_windows_in_a_pyramid(input_scale, size):
    backbone = pyramid(vit(), input_scale)
    names, classes = list(backbone.state_dict()), [type(module) for module in backbone.modules()]
    copy = traceable(backbone)
    assert {p.data_ptr() for p in copy.parameters()} <= {p.data_ptr() for p in backbone.parameters()}
    assert list(backbone.state_dict()) == names and [type(module) for module in backbone.modules()] == classes
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, levels = backbone(images), copy(images)
    assert list(levels) == list(expected)
    for name, level in expected.items():
        torch.testing.assert_close(levels[name], level, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(28, 42), (448, 518)])
def test_enlarging_for_patches_of_14_pixels_is_exact(size):
    upsampler = lift(8, 14)
    images, features = torch.randn(1, 3, *size), torch.randn(1, 8, size[0] // 14, size[1] // 14)
    with torch.no_grad():
        expected = upsampler.to(torch.float64).upsample(images.double(), features.double(), 2)
        result = traceable(upsampler.float()).upsample(images, features, 2)
    assert (result - expected).abs().max() < 2e-5


def test_rotary_positions_of_dinov3():
    model = TimmViT("vit_small_patch16_dinov3", depth=1).eval()
    rope = traceable(model).vit.rope
    assert isinstance(timm.create_model("vit_small_patch16_dinov3", depth=1).rope, RotaryEmbeddingDinoV3)
    assert type(rope) is not RotaryEmbeddingDinoV3
    for shape in [(3, 5), (7, 2)]:
        torch.testing.assert_close(rope.get_embed(shape), model.vit.rope.get_embed(shape), atol=1e-6, rtol=0)
