"""The adapter for modules of other projects, with stand-ins for them."""

import pytest
import torch
import torch.nn.functional as F

from lift_det.modeling import ExternalUpsampler, LazyUpsampler, build_upsampler
from tests.upsampler_standins import AnyUpLike, LoftUpLike

IMAGES, FEATURES = torch.rand(2, 3, 56, 84), torch.rand(2, 8, 4, 6)


def test_anyups_call():
    module, seen = AnyUpLike(), []
    module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    upsampler = ExternalUpsampler(module)
    assert upsampler(IMAGES, FEATURES).shape == (2, 8, 8, 12)
    assert seen[0] is IMAGES  # the image at full resolution
    assert torch.equal(upsampler(IMAGES, FEATURES, (10, 15)), module(IMAGES, FEATURES, output_size=(10, 15)))
    assert {name for name, _ in upsampler.named_parameters()} == {"module.mix.weight", "module.mix.bias"}


def test_features_first_and_to_the_images_size():
    module = LoftUpLike()
    upsampler = ExternalUpsampler(module, arguments=("features", "image"))
    for size in ((8, 12), (16, 24)):
        guide = F.interpolate(IMAGES, size=size, mode="bilinear", align_corners=False, antialias=True)
        assert torch.equal(upsampler(IMAGES, FEATURES, size), module(FEATURES, guide))


def test_a_function_and_a_result_of_another_size():
    upsampler = ExternalUpsampler(lambda image, features, size: F.interpolate(features, scale_factor=8))
    expected = F.interpolate(F.interpolate(FEATURES, scale_factor=8), size=(8, 12), mode="bilinear", antialias=True)
    assert torch.equal(upsampler(IMAGES, FEATURES), expected)


def test_hub_entry(monkeypatch):
    called = []
    monkeypatch.setattr(torch.hub, "load", lambda *args, **kwargs: called.append((args, kwargs)) or AnyUpLike())
    lazy = LazyUpsampler("external", source="wimmerth/anyup:anyup", pretrained=False)
    assert isinstance(lazy.build(8, 14), ExternalUpsampler)
    assert called == [(("wimmerth/anyup", "anyup"), {"pretrained": False})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(source="wimmerth/anyup"), "wimmerth/anyup"),
        (dict(source=AnyUpLike(), arguments=("image",)), "'image'"),
        (dict(source=AnyUpLike(), arguments=("image", "features", "size")), "'size'"),
        (dict(source=AnyUpLike(), pretrained=True), r"\['pretrained'\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_upsampler("external", **arguments)
