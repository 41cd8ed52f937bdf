import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from lift_det import TimmViT, ViT, model_zoo
from lift_det.engine import LayerDecay


def _rate(name, **kwargs):
    return LayerDecay(lr_decay_rate=0.7, num_layers=12, **kwargs)(name)


def test_is_upstreams_for_upstreams_vit():
    vit = ViT(img_size=64, embed_dim=32, depth=12, num_heads=2, use_rel_pos=True, residual_block_indexes=[3])
    names = [f"backbone.net.{name}" for name, _ in vit.named_parameters()]
    names += ["backbone.simfp_2.0.weight", "roi_heads.box_head.fc1.weight", "proposal_generator.head.conv.weight"]
    for name in names:
        assert _rate(name) == pytest.approx(get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=12)), name


def test_timm_vit_is_known():
    vit = TimmViT("vit_small_patch14_reg4_dinov2", depth=12, embed_dim=48, num_heads=2)
    rates = {name: _rate(f"backbone.net.{name}") for name, _ in vit.named_parameters()}
    for name in ("vit.cls_token", "vit.reg_token", "vit.pos_embed", "vit.patch_embed.proj.weight"):
        assert rates[name] == pytest.approx(0.7**13), name
    assert rates["vit.blocks.0.ls1.gamma"] == pytest.approx(0.7**12)
    assert rates["vit.blocks.11.mlp.fc2.bias"] == pytest.approx(0.7)
    assert rates["vit.norm.weight"] == 1


def test_lift_has_a_rate_of_its_own():
    name = "backbone.lift.up1.conv_1.double_conv.0.weight"
    assert _rate(name) == 1
    assert _rate(name, lift_lr_rate=0.7) == 0.7


def test_more_blocks_than_said_are_an_error():
    with pytest.raises(ValueError, match="beyond num_layers=12"):
        _rate("backbone.net.blocks.12.norm1.weight")


def test_rates_can_be_overridden_from_the_command_line():
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_l_100ep.py")
    cfg = LazyConfig.apply_overrides(cfg, ["optimizer.params.lr_factor_func.lift_lr_rate=0.8"])
    rate = instantiate(cfg.optimizer.params.lr_factor_func)
    assert rate("backbone.lift.outc.weight") == 0.8
    assert rate("backbone.net.blocks.0.norm1.weight") == pytest.approx(0.8**24)
