import copy
import dataclasses

import pytest
import torch
from torch import nn

from lift_det.checkpoint import CheckpointError
from lift_det.modeling import FeatureSpec, same_weights, weights_fingerprint

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
    assert FeatureSpec.from_metadata({}) == FeatureSpec()
    assert FeatureSpec().to_metadata() == {}
    for broken in ({"layer": "last"}, {"final_norm": "yes"}, {"pixel_mean": "a b c"}):
        with pytest.raises(CheckpointError, match="metadata of a LiFT's file cannot be read"):
            FeatureSpec.from_metadata(broken)


def test_differences_are_named_with_both_sides():
    given = dataclasses.replace(SPEC, layer=10, facet="key", final_norm=False, weights="1 2.6", pixel_mean=(0.0,))
    assert SPEC.differences(given) == {
        "layer": ("11", "10"),
        "facet": ("token", "key"),
        "final_norm": ("true", "false"),
        "weights": ("tensor 1 on: 2.5 …", "tensor 1 on: 2.6 …"),
    }
    assert SPEC.differences(given, allow=["layer", "weights", "final_norm"]) == {"facet": ("token", "key")}
    with pytest.raises(
        CheckpointError, match="(?s)lift.safetensors was trained.*facet: trained with 'token', given 'key'"
    ):
        SPEC.check(dataclasses.replace(SPEC, facet="key"), source="lift.safetensors")
    with pytest.raises(ValueError, match=r"allow_lift names \['backbones'\]; what is compared is \['backbone'"):
        SPEC.differences(given, allow=["backbones"])


def test_unknown_is_equal_to_anything():
    assert FeatureSpec().differences(SPEC) == SPEC.differences(FeatureSpec()) == {}
    assert FeatureSpec(layer=3).differences(SPEC) == {"layer": ("3", "11")}


def test_fingerprint_is_of_the_weights():
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        module[1].weight.fill_(-1e-4)
    fingerprint = weights_fingerprint(module)
    assert fingerprint == "2.739 0.0001"  # the square root of 7.5; biases have one dimension
    for half in (copy.deepcopy(module).half(), copy.deepcopy(module).bfloat16()):
        assert same_weights(fingerprint, weights_fingerprint(half))
    with torch.no_grad():
        module[0].weight.mul_(1.02)
    assert not same_weights(fingerprint, weights_fingerprint(module))
    assert same_weights(fingerprint, weights_fingerprint(module), tolerance=0.05)


@pytest.mark.parametrize(("a", "b"), [("1 2", "1"), ("1 2", "1 2.1"), ("0 1", "1 1"), ("nan", "nan")])
def test_other_weights(a, b):
    assert not same_weights(a, b) and not same_weights(b, a)
    assert same_weights("0 1 2.01", "0 1.001 2")
