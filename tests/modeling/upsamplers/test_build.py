import pytest
import torch
from torch import nn

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
    upsampler = build_upsampler(name, 16, 14)
    assert type(upsampler) is kind
    assert upsampler.name == (name or "lift")


def test_settings_of_the_class_and_no_others():
    assert build_upsampler("lift_plus", 16, 14, pool=5, norm=None).settings()["pool"] == 5
    with pytest.raises(ValueError, match="'lift' has no setting pool: it has .*'residual'"):
        build_upsampler("lift", 16, 14, pool=5)
    with pytest.raises(ValueError, match="no upsampler 'lyft': it can be one of bilinear, external, lift, lift_plus"):
        LazyUpsampler("lyft")


def test_lazy_is_built_for_the_features_and_told_which_they_are():
    lift = fit_upsampler(LazyUpsampler(norm="LN"), SPEC)
    assert (type(lift), lift.in_channels, lift.patch_size, lift.norm) == (LiFT, 16, 14, "LN")
    assert (lift.feature_spec, lift.trained) == (SPEC, False)
    assert type(fit_upsampler(LazyUpsampler().with_default("lift_plus"), SPEC)) is LiFTPlus
    assert type(fit_upsampler(LazyUpsampler("bilinear").with_default("lift_plus"), SPEC)) is BilinearUpsample
    assert fit_upsampler(None, SPEC) is None


def test_stated_sizes_have_to_be_the_vits(tmp_path):
    assert fit_upsampler(LazyUpsampler(in_channels=16), SPEC).in_channels == 16
    for stated in (dict(in_channels=32), dict(patch_size=8)):
        with pytest.raises(ValueError, match="the ViT has 16 and 14"):
            fit_upsampler(LazyUpsampler(**stated), SPEC)
    save_lift(LiFTPlus(16, 14), tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match="stated in_channels=32, in the file in_channels=16"):
        fit_upsampler(LazyUpsampler(checkpoint=tmp_path / "lift.safetensors", in_channels=32), SPEC)


def test_checkpoint_is_all_that_a_trained_one_needs(tmp_path):
    path = tmp_path / "lift.safetensors"
    save_lift(LiFTPlus(16, 14, pool=5, normalize=False), path, SPEC.to_metadata())
    lift = fit_upsampler(LazyUpsampler(checkpoint=path).with_default("lift"), SPEC)
    assert (type(lift), lift.pool_size, lift.normalize, lift.trained) == (LiFTPlus, 5, None, True)
    assert lift.trained_on == SPEC
    other = FeatureSpec(in_channels=16, patch_size=14, layer=10)
    with pytest.raises(CheckpointError, match="layer: trained with '11', given '10'"):
        fit_upsampler(LazyUpsampler(checkpoint=path), other)
    fit_upsampler(LazyUpsampler(checkpoint=path), other, allow=["layer"])
    with pytest.raises(CheckpointError, match="stated pool=3, in the file pool=5"):
        fit_upsampler(LazyUpsampler(checkpoint=path, pool=3), SPEC)


def test_registering_is_one_line():
    try:

        @register_upsampler("test_nearest")
        class Nearest(FeatureUpsampler):
            def forward(self, images, features, output_size=None):
                return nn.functional.interpolate(features, output_size or [2 * side for side in features.shape[-2:]])

        upsampler = fit_upsampler(LazyUpsampler("test_nearest"), SPEC)
        assert upsampler(torch.zeros(1, 3, 4, 4), torch.zeros(1, 16, 2, 2)).shape == (1, 16, 4, 4)
        with pytest.raises(ValueError, match="'test_nearest' is registered already"):
            register_upsampler("test_nearest")(Nearest)
    finally:
        UPSAMPLERS.pop("test_nearest", None)
