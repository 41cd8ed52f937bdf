import pytest
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from lift_det import LiFT, TimmViT, ViT, config, save_lift
from lift_det.engine import LayerDecay, get_optimizer_params
from tests.engine.tiny_detector import tiny_config

_rate = LayerDecay(lr_decay_rate=0.7, num_layers=12)


def test_rates_of_detectron2s_vit_are_detectron2s():
    vit = ViT(img_size=64, embed_dim=32, depth=12, num_heads=2, use_rel_pos=True, residual_block_indexes=[3])
    names = [f"backbone.net.{name}" for name, _ in vit.named_parameters()]
    names += ["backbone.simfp_2.0.weight", "roi_heads.box_head.fc1.weight", "proposal_generator.head.conv.weight"]
    for name in names:
        assert _rate(name) == pytest.approx(get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=12)), name
    with pytest.raises(ValueError, match="num_layers=12"):
        _rate("backbone.net.blocks.12.norm1.weight")


def test_rates_of_a_timm_vit():
    vit = TimmViT("vit_small_patch14_reg4_dinov2", depth=12, embed_dim=48, num_heads=2)
    rates = {name: _rate(f"backbone.net.{name}") for name, _ in vit.named_parameters()}
    for name in ("vit.cls_token", "vit.reg_token", "vit.pos_embed", "vit.patch_embed.proj.weight"):
        assert rates[name] == pytest.approx(0.7**13), name
    assert rates["vit.blocks.0.ls1.gamma"] == pytest.approx(0.7**12)
    assert rates["vit.blocks.11.mlp.fc2.bias"] == pytest.approx(0.7)
    assert rates["vit.norm.weight"] == 1


def _lift_rate(model, decay):
    params = get_optimizer_params(model, base_lr=1.0, lr_factor_func=decay)
    rates = {id(p): group["lr"] for group in params for p in group["params"]}
    return {round(rates[id(p)], 6) for p in model.backbone.lift.parameters()}


def test_lifts_rate_depends_on_whether_it_is_trained(tmp_path, one_thread):
    save_lift(LiFT(32, 8), tmp_path / "lift.safetensors")
    cfg = tiny_config()
    cfg.optimizer = config.load("COCO/mask_rcnn_lift_vitdet_b_100ep").optimizer
    cfg.optimizer.params.lr_factor_func.num_layers = 1
    new = instantiate(cfg.model)
    cfg.model.backbone.lift.checkpoint = str(tmp_path / "lift.safetensors")
    trained = instantiate(cfg.model)
    cfg.optimizer.params.model = trained
    optimizer = instantiate(cfg.optimizer)
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    rates = {names[id(p)]: group["lr"] / 1e-4 for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    assert rates["backbone.net.blocks.0.norm1.weight"] == pytest.approx(0.7)
    assert rates["roi_heads.box_head.fc1.weight"] == pytest.approx(1)
    assert rates["backbone.lift.outc.weight"] == pytest.approx(0.7)
    # one decay for several models; a stated rate holds for both
    decay, stated = LayerDecay(0.7, 1), LayerDecay(0.7, 1, lift_lr_rate=0.5)
    assert [_lift_rate(model, decay) for model in (new, trained, new)] == [{1.0}, {0.7}, {1.0}]
    assert _lift_rate(new, stated) == _lift_rate(trained, stated) == {0.5}
