import pytest
import torch
import torch.nn.functional as F

from lift_det import BilinearUpsample, LiFT, LiFTPlus, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import FeatureSpec, FeatureUpsampler, LazyUpsampler, build_upsampler, register_upsampler
from lift_det.modeling.upsamplers import fit_upsampler
from lift_det.modeling.upsamplers.base import UPSAMPLERS

SPEC = FeatureSpec(in_channels=16, patch_size=14, layer=11, facet="token")


@pytest.mark.parametrize(
    ("name", "kind"), [(None, LiFT), ("lift", LiFT), ("lift_plus", LiFTPlus), ("bilinear", BilinearUpsample)]
)
def test_by_name(name, kind):
    assert type(build_upsampler(name, 16, 14, norm=None)) is kind
    with pytest.raises(ValueError, match="pool"):
        build_upsampler(name, 16, 14, pool=5)
    with pytest.raises(ValueError, match="'lyft'.*bilinear, external, lift, lift_plus"):
        LazyUpsampler("lyft")


def test_lazy_upsampler():
    lift = fit_upsampler(LazyUpsampler(norm="LN"), SPEC)
    assert (type(lift), lift.in_channels, lift.patch_size, lift.norm) == (LiFT, 16, 14, "LN")
    assert (lift.feature_spec, lift.trained) == (SPEC, False)
    assert fit_upsampler(LazyUpsampler(in_channels=16), SPEC).in_channels == 16
    assert fit_upsampler(None, SPEC) is None
    for stated in (dict(in_channels=32), dict(patch_size=8)):
        with pytest.raises(ValueError, match="16 and 14"):
            fit_upsampler(LazyUpsampler(**stated), SPEC)


def test_lazy_upsampler_with_a_checkpoint(tmp_path):
    path = tmp_path / "lift.safetensors"
    save_lift(LiFTPlus(16, 14, attention_kernel=5, standardize=False), path, SPEC.to_metadata())
    lift = fit_upsampler(LazyUpsampler(checkpoint=path), SPEC)
    assert (type(lift), lift.attention_kernel, lift.normalize, lift.trained) == (LiFTPlus, 5, None, True)
    assert lift.trained_on == SPEC
    other = FeatureSpec(in_channels=16, patch_size=14, layer=10)
    with pytest.raises(CheckpointError, match="'11'.*'10'"):
        fit_upsampler(LazyUpsampler(checkpoint=path), other)
    fit_upsampler(LazyUpsampler(checkpoint=path), other, ignore_mismatch=["layer"])
    for stated in (dict(attention_kernel=3), dict(in_channels=32)):
        with pytest.raises(CheckpointError, match=next(iter(stated))):
            fit_upsampler(LazyUpsampler(checkpoint=path, **stated), SPEC)


def test_register_upsampler():
    try:

        @register_upsampler("test_nearest")
        class Nearest(FeatureUpsampler):
            def forward(self, images, features, output_size=None):
                return F.interpolate(features, output_size or [2 * side for side in features.shape[-2:]])

        upsampler = fit_upsampler(LazyUpsampler("test_nearest"), SPEC)
        assert upsampler(torch.zeros(1, 3, 4, 4), torch.zeros(1, 16, 2, 2)).shape == (1, 16, 4, 4)
        with pytest.raises(ValueError, match="'test_nearest'"):
            register_upsampler("test_nearest")(Nearest)
    finally:
        UPSAMPLERS.pop("test_nearest", None)


def test_bilinear():
    images, features = torch.randn(2, 3, 28, 42), torch.randn(2, 8, 2, 3)
    upsampler = BilinearUpsample()
    for size in (None, (8, 12), (5, 7)):
        expected = F.interpolate(features, size=size or (4, 6), mode="bilinear", align_corners=False)
        assert torch.equal(upsampler(images, features, size), expected)
    assert torch.equal(upsampler.upsample(images, features, 2), upsampler(images, features, (8, 12)))
    checkerboard = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8)[None, None]
    reduced = upsampler(torch.zeros(1, 3, 16, 16), checkerboard, (4, 4))  # with antialiasing
    assert (reduced - 0.5).abs().max() < 0.05
