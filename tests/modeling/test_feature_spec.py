import copy
import dataclasses

import pytest
import torch
from torch import nn

from lift_det.checkpoint import CheckpointError
from lift_det.modeling import FeatureSpec
from lift_det.modeling.feature_spec import first_difference, weights_fingerprint

SPEC = FeatureSpec(
    backbone="vit_small_patch14_dinov2.lvd142m",
    in_channels=384,
    patch_size=14,
    layer=11,
    facet="token",
    final_norm=True,
    weights="1 2.5",
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
)


def test_metadata_and_back():
    metadata = SPEC.to_metadata()
    assert metadata == {
        "backbone": "vit_small_patch14_dinov2.lvd142m",
        "in_channels": "384",
        "patch_size": "14",
        "layer": "11",
        "facet": "token",
        "final_norm": "true",
        "weights": "1 2.5",
        "pixel_mean": "123.675 116.28 103.53",
        "pixel_std": "58.395 57.12 57.375",
    }
    assert FeatureSpec.from_metadata({**metadata, "training_data": "photos", "norm": "BN"}) == SPEC
    assert FeatureSpec.from_metadata({}) == FeatureSpec() and FeatureSpec().to_metadata() == {}
    for broken in ({"layer": "last"}, {"final_norm": "yes"}, {"pixel_mean": "a b c"}):
        with pytest.raises(CheckpointError):
            FeatureSpec.from_metadata(broken)


def test_differences_have_both_values():
    given = dataclasses.replace(SPEC, layer=10, facet="key", weights="1 2.6", pixel_mean=(0.0,))
    with pytest.raises(CheckpointError) as error:
        SPEC.check(given, source="lift.safetensors")
    for text in ("lift.safetensors", "'11'", "'10'", "'token'", "'key'", "2.5 in tensor 1", "2.6 in tensor 1"):
        assert text in str(error.value)
    assert "ignore_mismatch=['layer', 'facet', 'weights']" in str(error.value)
    SPEC.check(given, ignore_mismatch=["layer", "facet", "weights"])
    with pytest.raises(ValueError, match="backbones"):
        SPEC.check(given, ignore_mismatch=["backbones"])
    FeatureSpec().check(SPEC)  # unknown fields match anything
    SPEC.check(FeatureSpec())


def test_fingerprint():
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        module[1].weight.fill_(-1e-4)
    fingerprint = weights_fingerprint(module)
    assert fingerprint == "2.739 0.0001"  # the square root of 7.5; biases have one dimension
    for half in (copy.deepcopy(module).half(), copy.deepcopy(module).bfloat16()):
        assert first_difference(fingerprint, weights_fingerprint(half)) is None
    with torch.no_grad():
        module[0].weight.mul_(1.02)
    assert first_difference(fingerprint, weights_fingerprint(module)) == ("2.739 in tensor 0", "2.793 in tensor 0")
    for a, b in (("1 2", "1"), ("0 1", "1 1"), ("nan", "nan")):
        assert first_difference(a, b) and first_difference(b, a)
