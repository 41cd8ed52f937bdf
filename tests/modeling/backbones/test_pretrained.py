"""Finding the ViT for a name or a file of weights."""

import pytest
import timm
import torch

from lift_det import TimmViT
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import find_vit


def test_names():
    vit = find_vit("vit_small_patch14_dinov2.lvd142m")
    assert (vit.embed_dim, vit.patch_size) == (384, 14)
    assert vit.arguments() == {"name": "vit_small_patch14_dinov2.lvd142m", "pretrained": True, "checkpoint": ""}
    assert find_vit("vit_tiny_patch16_224", num_heads=6).arguments()["num_heads"] == 6
    for wrong in (["vit_smal_patch14"], ["vit_tiny_patch16_224", "vit_tiny_patch16_224"], ["resnet50"]):
        with pytest.raises(ValueError, match=wrong[0]):
            find_vit(*wrong)
    with pytest.raises(CheckpointError, match="nowhere/weights.pth"):
        find_vit("nowhere/weights.pth")


def test_architectures_implied_by_releases(tmp_path):
    path = str(tmp_path / "file.pth")

    def find(state):
        torch.save(state, path)
        return find_vit(path)

    small = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", img_size=56)
    assert find(small.state_dict()).name == "vit_small_patch14_reg4_dinov2.lvd142m"
    plain = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    dino = {"teacher": {f"backbone.{k}": v for k, v in plain.items()} | {"head.last_layer.weight_g": torch.ones(1, 1)}}
    assert find(dino).arguments() == {"name": "vit_small_patch16_224.dino", "pretrained": False, "checkpoint": path}
    moco = {f"module.base_encoder.{k}": v for k, v in plain.items()}
    moco |= {k.replace("base", "momentum"): v for k, v in moco.items()}
    vit = find({"state_dict": moco})
    assert (vit.name, vit.num_heads) == ("vit_small_patch16_224", 12)
    net = vit.build()
    assert net.num_heads == 12 and net.pixel_mean == (123.675, 116.28, 103.53)
    assert TimmViT(vit.name).pixel_mean == (127.5, 127.5, 127.5)  # of timm's weights with this name
    assert torch.equal(net.vit.norm.weight, plain["norm.weight"])


def test_number_of_heads_is_not_guessed(tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    with pytest.raises(CheckpointError, match="architecture"):
        find_vit(path)
    assert find_vit(path, "vit_tiny_patch16_224").build().weights_given
