import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import nn

from lift_det import LiFT, TimmViT, ViT, config, model_zoo, save_lift
from lift_det.engine import ClippedAdamW, LayerDecay, get_optimizer_params
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


def test_more_blocks_than_layers_are_an_error():
    with pytest.raises(ValueError, match="num_layers=12"):
        _rate("backbone.net.blocks.12.norm1.weight")


def test_rates_can_be_overridden_from_the_command_line():
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_l_100ep.py")
    cfg = LazyConfig.apply_overrides(cfg, ["optimizer.params.lr_factor_func.lift_lr_rate=0.8"])
    rate = instantiate(cfg.optimizer.params.lr_factor_func)
    assert rate("backbone.lift.outc.weight") == 0.8
    assert rate("backbone.net.blocks.0.norm1.weight") == pytest.approx(0.8**24)


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


def test_clipped_adamw_is_adamw_on_clipped_gradients():
    torch.manual_seed(0)
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.load_state_dict(a.state_dict())
    clipped = ClippedAdamW([{"params": [p]} for p in a.parameters()], lr=0.1, max_norm=0.5)
    plain = torch.optim.AdamW(b.parameters(), lr=0.1)
    for scale in (100.0, 0.001, 10.0):
        for model, optimizer in ((a, clipped), (b, plain)):
            optimizer.zero_grad()
            (scale * model(torch.ones(1, 4)).sum()).backward()
            if optimizer is plain:
                torch.nn.utils.clip_grad_norm_(b.parameters(), 0.5)
            optimizer.step()
    assert torch.equal(a.weight, b.weight)
    with pytest.raises(ValueError, match="fused"):
        ClippedAdamW(nn.Linear(2, 2).parameters(), fused=True)
