import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from lift_det import LiFT, LiFTPlus, TimmViT, ViT, config, model_zoo, save_lift
from lift_det.engine import LayerDecay
from tests.engine.tiny_detector import tiny_config


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


def _lift_factors(overrides):
    """The learning rates of LiFT's parameters, of the optimizer that a config makes, as shares of its own."""
    cfg = tiny_config()
    parent = config.load("COCO/mask_rcnn_lift_vitdet_b_100ep")
    cfg.optimizer = parent.optimizer
    cfg.optimizer.params.lr_factor_func.num_layers = 1
    cfg = config.apply_overrides(cfg, overrides)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    assert rates["backbone.net.blocks.0.norm1.weight"] == pytest.approx(0.7e-4)  # the last block's
    assert rates["roi_heads.box_head.fc1.weight"] == pytest.approx(1e-4)
    lift = {rate for name, rate in rates.items() if name.startswith("backbone.lift.")}
    return sorted(round(rate / cfg.optimizer.lr, 6) for rate in lift)


@pytest.mark.parametrize("kind", [LiFT, LiFTPlus])
def test_lifts_rate_follows_from_its_being_trained(kind, tmp_path):
    save_lift(kind(32, 8), tmp_path / "lift.safetensors")
    trained = f"model.backbone.lift.checkpoint={tmp_path}/lift.safetensors"
    stated = "optimizer.params.lr_factor_func.lift_lr_rate=0.5"
    assert _lift_factors([]) == [1.0]
    assert _lift_factors([trained]) == [0.7]
    # what is stated counts, for either
    assert _lift_factors([stated]) == _lift_factors([trained, stated]) == [0.5]


def test_a_decay_serves_several_models():
    """What it decides for one is no setting of its own."""
    cfg = tiny_config()
    models = [instantiate(cfg.model) for _ in range(2)]
    models[1].backbone.lift.trained = True
    decay = LayerDecay(lr_decay_rate=0.7, num_layers=1)
    assert [decay.for_model(model)("backbone.lift.outc.weight") for model in (*models, models[0])] == [1.0, 0.7, 1.0]
    models[0].backbone.lift = None
    assert decay.for_model(models[0])("backbone.net.blocks.0.norm1.weight") == 0.7
