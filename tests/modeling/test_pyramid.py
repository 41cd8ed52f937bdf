import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.structures import ImageList
from torch import nn
from torch.testing import assert_close

from lift_det import LiFT, LiFTFeaturePyramid, ViT
from lift_det.modeling import FeatureUpsampler


class Patches(Backbone):
    """A ViT without blocks."""

    def __init__(self, patch_size: int = 16, channels: int = 32):
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.proj = nn.Conv2d(3, channels, patch_size, patch_size)
        self.bn = nn.BatchNorm2d(channels)
        self.seen: torch.Size | None = None

    def forward(self, x):
        self.seen = x.shape
        return {"last_feat": self.bn(self.proj(x))}

    def output_shape(self):
        return {"last_feat": ShapeSpec(channels=self.channels, stride=self.patch_size)}


def _pyramid(patch_size=16, lift="lift", **kwargs):
    net = Patches(patch_size)
    lift = LiFT(32, patch_size) if lift == "lift" else lift
    return LiFTFeaturePyramid(net, lift, "last_feat", 8, **kwargs)


def _small_vit(**kwargs):
    return ViT(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, use_rel_pos=True, **kwargs)


@pytest.mark.parametrize(
    ("strides", "norm"),
    [
        ((4, 8, 16, 32), "LN"),
        ((8, 16, 32), "LN"),
        ((8, 16, 32), ""),  # upstream cannot do without a norm at stride 4
        ((16, 32), "GN"),
    ],
)
def test_without_lift_it_is_upstreams(strides, norm):
    top_block = LastLevelMaxPool() if 32 in strides else None
    arguments = dict(in_feature="last_feat", out_channels=32, top_block=top_block, norm=norm, square_pad=64)
    factors = tuple(16 / stride for stride in strides)
    upstream = SimpleFeaturePyramid(_small_vit(), **arguments, scale_factors=factors)
    ours = LiFTFeaturePyramid(_small_vit(), None, **arguments, level_strides=strides)
    ours.load_state_dict(upstream.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    expected, got = upstream.eval()(x), ours.eval()(x)
    assert list(expected) == list(got)
    for level, features in expected.items():
        assert_close(got[level], features, atol=1e-5, rtol=1e-5)
    assert ours.output_shape() == upstream.output_shape()
    assert isinstance(ours, SimpleFeaturePyramid)


@pytest.mark.parametrize(
    ("patch_size", "kwargs", "vit_sees", "strides"),
    [
        (16, {}, 128, [4, 8, 16, 32]),  # dense
        (16, {"input_scale": 0.5}, 64, [4, 8, 16, 32]),  # fast
        (16, {"input_scale": 0.25, "steps": 2}, 32, [4, 8, 16, 32]),
        (14, {"input_scale": 14 / 16}, 112, [4, 8, 16, 32]),
        (14, {"input_scale": 7 / 16}, 56, [4, 8, 16, 32]),
        (8, {}, 128, [4, 8, 16, 32]),
        (32, {"level_strides": (2, 4, 8, 16, 32, 64)}, 128, [2, 4, 8, 16, 32, 64]),
        (16, {"lift": None, "steps": 3}, 128, [4, 8, 16, 32]),
    ],
)
def test_strides_and_what_the_vit_sees(patch_size, kwargs, vit_sees, strides):
    pyramid = _pyramid(patch_size, **kwargs).eval()
    out = pyramid(torch.randn(1, 3, 128, 256))
    assert [shape.stride for shape in pyramid.output_shape().values()] == strides
    sizes = {f"p{s.bit_length() - 1}": (128 // s, 256 // s) for s in strides}
    assert {name: tuple(level.shape[-2:]) for name, level in out.items()} == sizes
    assert tuple(pyramid.net.seen[-2:]) == (vit_sees, 2 * vit_sees)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patch_size": 14}, "14/16"),
        ({"input_scale": 0.75}, "0.75"),
        ({"level_strides": (4, 8, 32)}, "4, 8, 32"),
        ({"level_strides": (6, 12)}, "6, 12"),
        ({"level_strides": ()}, "level_strides"),
        ({"level_strides": (4, 8, 16), "top_block": LastLevelMaxPool()}, "'p5'"),
        ({"square_pad": 1000}, "square_pad=1000.* 32"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"input_scale": 0}, "input_scale=0"),
        ({"lift": LiFT(32, 8)}, "32 and 16"),
        ({"lift": nn.Identity()}, "Identity.*FeatureUpsampler"),
    ],
)
def test_impossible_pyramids(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _pyramid(**kwargs)


def _pad(pyramid, *sizes):
    return ImageList.from_tensors(
        [torch.randn(3, *size) for size in sizes],
        pyramid.size_divisibility,
        padding_constraints=pyramid.padding_constraints,
    ).tensor


def test_padding_without_a_square_is_to_the_strides():
    # upstream misspells the constraint, and nothing is padded
    pyramid = _pyramid().eval()
    for sizes in ([(50, 70)], [(50, 70), (65, 33)]):
        x = _pad(pyramid, *sizes)
        assert x.shape[-2] % 32 == 0 and x.shape[-1] % 32 == 0
        pyramid(x)
    fast = _pyramid(32, input_scale=0.5, level_strides=(8, 16, 32), lift=None)  # patches of 64 pixels of the image
    assert _pad(fast, (50, 70)).shape[-2:] == (64, 128)


def test_square_padding_and_larger_images():
    pyramid = _pyramid(square_pad=64).eval()
    assert _pad(pyramid, (50, 40)).shape[-2:] == (64, 64)
    assert _pad(pyramid, (50, 40), (64, 64)).shape[-2:] == (64, 64)
    assert pyramid(_pad(pyramid, (50, 40)))["p2"].shape[-2:] == (16, 16)
    for sizes in ([(65, 40)], [(50, 40), (40, 65)]):  # upstream crops the first and raises on the second
        with pytest.raises(ValueError, match="square_pad=64"):
            pyramid(_pad(pyramid, *sizes))
    with pytest.raises(ValueError, match="64×48.* 32"):
        pyramid(torch.randn(1, 3, 64, 48))


@pytest.mark.parametrize("freeze_net", [True, False])
@pytest.mark.parametrize("freeze_lift", [True, False])
def test_freezing_survives_train_and_keeps_statistics(freeze_net, freeze_lift):
    pyramid = _pyramid(freeze_net=freeze_net, freeze_lift=freeze_lift)
    nn.init.normal_(pyramid.lift.outc.weight)
    before = {k: v.clone() for k, v in pyramid.state_dict().items()}
    pyramid.train()
    assert pyramid.net.training is not freeze_net
    assert pyramid.lift.training is not freeze_lift
    optimizer = torch.optim.SGD([p for p in pyramid.parameters() if p.requires_grad], lr=0.1)
    sum(level.square().mean() for level in pyramid(torch.randn(2, 3, 64, 64)).values()).backward()
    # every parameter that may train has a gradient: DDP needs no find_unused_parameters
    assert all(p.grad is not None for p in pyramid.parameters() if p.requires_grad)
    assert freeze_net or pyramid.net.proj.weight.grad.abs().sum() > 0  # through a frozen LiFT too
    optimizer.step()
    changed = {k for k, v in pyramid.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("simfp_2.") for k in changed)
    for prefix, frozen in (("net.", freeze_net), ("lift.", freeze_lift)):
        statistics = {k for k in changed if k.startswith(prefix) and "running_mean" in k}
        weights = {k for k in changed if k.startswith(prefix) and k.endswith("weight")}
        assert bool(statistics) is not frozen
        assert bool(weights) is not frozen


def test_upsamplers_have_to_follow_output_size():
    class Doubles(FeatureUpsampler):
        def forward(self, images, features, output_size=None):
            return nn.functional.interpolate(features, scale_factor=2)

    assert _pyramid(lift=Doubles())(torch.randn(1, 3, 64, 64))["p2"].shape[-1] == 16
    with pytest.raises(ValueError, match="8×8.*4×4"):
        _pyramid(lift=Doubles(), steps=2, input_scale=0.5)(torch.randn(1, 3, 64, 64))
