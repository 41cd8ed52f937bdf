"""The adapter for modules of other projects, tested with stand-ins of their signatures."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lift_det.modeling import ExternalUpsampler, LazyUpsampler, build_upsampler

IMAGES, FEATURES = torch.rand(2, 3, 56, 84), torch.rand(2, 8, 4, 6)


class AnyUpLike(nn.Module):
    """AnyUp and JAFAR: (image, features, output_size)."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 1)
        self.seen = None

    def forward(self, image, features, output_size=None):
        self.seen = tuple(image.shape[-2:])
        guide = F.interpolate(self.mix(image), size=output_size, mode="bilinear")
        return F.interpolate(features, size=output_size, mode="nearest") + 0.1 * guide


class LoftUpLike(nn.Module):
    """LoftUp and FeatUp: (features, image), to the image's size."""

    def forward(self, lr_feats, img):
        return F.interpolate(lr_feats, size=img.shape[-2:], mode="nearest") + 0.1 * img.mean(1, keepdim=True)


def test_anyups_call():
    module = AnyUpLike()
    upsampler = ExternalUpsampler(module)
    assert upsampler(IMAGES, FEATURES).shape == (2, 8, 8, 12)
    assert module.seen == (56, 84)  # the best image there is, as it came
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
        (dict(source="wimmerth/anyup"), "OWNER/REPOSITORY:ENTRY"),
        (dict(source=AnyUpLike(), arguments=("image",)), "arguments: expected 'image', 'features'"),
        (dict(source=AnyUpLike(), arguments=("image", "features", "size")), "arguments: expected"),
        (dict(source=AnyUpLike(), pretrained=True), r"\['pretrained'\] are for an entry of torch.hub"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_upsampler("external", **arguments)
