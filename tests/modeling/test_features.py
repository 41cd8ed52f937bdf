"""FeatureExtractor against timm's and detectron2's own computations, and which LiFT it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.utils import window_unpartition
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import Tensor, nn

from lift_det import BilinearUpsample, FeatureExtractor, LiFT, LiFTFeaturePyramid, TimmViT, ViT, load_lift, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.engine import Checkpointer
from lift_det.modeling import LazyUpsampler, LiFTPlus, LiFTPretraining, weights_fingerprint
from tests.modeling.deterministic import randomise

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 4}
# timm's name, what makes it small, its prefix tokens
NETS = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}, 1),
    "registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 70}, 5),
    "qk_norm": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "qk_norm": True}, 1),
    "post_norm": ("vit_base_patch16_rpn_224", {**SMALL, "img_size": 64, "fc_norm": False}, 0),
    "eva02": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 70}, 1),  # biases beside one projection
    "eva02_split": ("eva02_base_patch14_224", {**SMALL, "img_size": 70, "use_fc_norm": False}, 1),  # three projections
    "eva_post_norm": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 70, "use_post_norm": True}, 1),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}, 5),
    "dinov3_bias": ("vit_small_patch16_dinov3_qkvb", {**SMALL, "img_size": 64}, 5),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {**SMALL, "img_size": 64}, 1),
}
every_net = pytest.mark.parametrize("kind", list(NETS))
FACETS = list(enumerate(("query", "key", "value")))
UPSTREAM = dict(
    img_size=64,
    embed_dim=48,
    depth=3,
    num_heads=4,
    use_rel_pos=True,
    rel_pos_zero_init=False,
    window_size=3,
    window_block_indexes=[0, 2],
    residual_block_indexes=[1],
)


pytestmark = pytest.mark.usefixtures("one_thread")


def timm_net(kind: str = "vit", seed: int = 0, **kwargs) -> TimmViT:
    name, small, _ = NETS[kind]
    net = TimmViT(name, **{**small, **kwargs}).eval()
    randomise(net, seed)
    return net


def twin_of(kind: str, net: TimmViT) -> nn.Module:
    name, small, _ = NETS[kind]
    twin = timm.create_model(name, dynamic_img_size=True, **small).eval()
    assert not twin.load_state_dict(net.vit.state_dict(), strict=False).unexpected_keys
    return twin


def upstream_pair() -> tuple[UpstreamViT, ViT]:
    upstream, ours = UpstreamViT(**UPSTREAM).eval(), ViT(**UPSTREAM).eval()
    randomise(upstream)
    ours.load_state_dict(upstream.state_dict(), strict=True)
    return upstream, ours


def images(net: nn.Module, rows: int = 3, columns: int = 4, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, rows * net.patch_size, columns * net.patch_size, generator=generator)


def as_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns)


def trained_lift(extractor: FeatureExtractor, path: Path, **changes: str) -> LiFT:
    """A LiFT's file as training on these features leaves it, read again."""
    settings = {**extractor.feature_spec().to_metadata(), **changes}
    save_lift(LiFT(extractor.output_shape()["last_feat"].channels, extractor.patch_size), path, settings)
    return load_lift(path)


# --- the features --------------------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("norm", [True, False])
def test_tokens_of_every_layer_are_timms(kind: str, norm: bool) -> None:
    net = timm_net(kind)
    x = images(net)
    with torch.no_grad():
        expected = twin_of(kind, net).forward_intermediates(x, indices=[0, 1, 2], norm=norm, intermediates_only=True)
        for layer in (0, 1, 2):
            norm_here = norm if net.has_norm else None  # where only the pooled vector is normed, None is all there is
            got = FeatureExtractor(net, layer=layer, norm=norm_here).extract(x)
            assert expected[layer].std() > 0.1
            torch.testing.assert_close(got, expected[layer], atol=1e-5, rtol=1e-5)
            assert torch.equal(FeatureExtractor(net, layer=layer - 3, norm=norm_here).extract(x), got)
        whole = FeatureExtractor(net)(x)["last_feat"]  # the net's own map
    assert torch.equal(whole, net(x)["last_feat"])


def test_norm_of_none_is_the_nets() -> None:
    x = images(timm_net())
    with torch.no_grad():
        for layer in (0, None):
            with_norm, without = (FeatureExtractor(timm_net(norm=n), layer=layer).extract(x) for n in (True, False))
            assert torch.equal(with_norm, FeatureExtractor(timm_net(), layer=layer, norm=True).extract(x))
            assert torch.equal(without, FeatureExtractor(timm_net(), layer=layer, norm=False).extract(x))
            assert (with_norm - without).abs().max() > 0.1


def facets_by_timm(twin: nn.Module, layer: int, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the attention of a timm block works with: queries and keys before their norm and rotation, and values."""
    seen: dict[str, Tensor] = {}
    attention = twin.blocks[layer].attn
    hooks = [
        attention.q_norm.register_forward_pre_hook(lambda module, args: seen.update(query=args[0])),
        attention.k_norm.register_forward_pre_hook(lambda module, args: seen.update(key=args[0])),
    ]
    values: list[Tensor] = []
    original = F.scaled_dot_product_attention
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, **kw: values.append(v) or original(q, k, v, **kw)
        )
        twin.forward_features(x)
    for hook in hooks:
        hook.remove()
    assert len(values) == len(twin.blocks)
    seen["value"] = values[layer]
    return {name: heads.transpose(1, 2).flatten(2) for name, heads in seen.items()}  # (N, prefix + HW, C)


@every_net
def test_facets_are_what_timms_attention_works_with(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = timm_net(kind)
    twin, prefix = twin_of(kind, net), NETS[kind][2]
    x = images(net)
    for layer in (0, 2):
        for facet, expected in facets_by_timm(twin, layer, x, monkeypatch).items():
            extractor = FeatureExtractor(net, layer=layer, facet=facet)
            with torch.no_grad():
                got = extractor.extract(x)
            expected = as_map(expected[:, prefix:], 3, 4)
            assert got.shape == (2, 48, 3, 4) and expected.std() > 0.1
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
            assert extractor.norm is False


@pytest.mark.parametrize("kind", ["vit", "registers", "qk_norm"])
def test_facets_are_what_a_hook_on_the_projection_sees(kind: str) -> None:
    net = timm_net(kind)
    twin, prefix = twin_of(kind, net), NETS[kind][2]
    x, seen = images(net), []
    twin.blocks[1].attn.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        twin.forward_features(x)
        for facet, expected in zip(("query", "key", "value"), seen[0].split(48, dim=-1), strict=True):
            got = FeatureExtractor(net, layer=1, facet=facet).extract(x)
            torch.testing.assert_close(got, as_map(expected[:, prefix:], 3, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("facet", ["token", "key"])
def test_windows_of_earlier_blocks_are_kept(facet: str) -> None:
    windowed = timm_net(window_size=2, window_block_indexes=[0, 1])
    plain = timm_net()
    x = images(windowed, 4, 4)
    with torch.no_grad():
        # block 0 is windowed, block 1 too: neither is in a copy whose window is the whole grid
        windowed_map = FeatureExtractor(windowed, layer=1, facet=facet).extract(x)
        assert (windowed_map - FeatureExtractor(plain, layer=1, facet=facet).extract(x)).abs().max() > 1e-2
        windowed.window_block_indexes = (0,)
        if facet == "key":  # linear in each token: the windows of its own block are none of its business
            assert torch.equal(FeatureExtractor(windowed, layer=1, facet=facet).extract(x), windowed_map)


def test_detectron2s_vit_layers_and_facets() -> None:
    upstream, ours = upstream_pair()
    x = images(ours, 4, 5)  # 3×3 windows are padded
    outputs: dict[tuple[int, str], Tensor] = {}
    for i, block in enumerate(upstream.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: outputs.update({(i, "token"): out}))
        block.attn.qkv.register_forward_hook(
            lambda m, a, out, i=i: outputs.update({(i, f): out[..., 48 * j : 48 * (j + 1)] for j, f in FACETS})
        )
    with torch.no_grad():
        upstream(x)
        for (layer, facet), expected in outputs.items():
            if facet != "token" and layer != 1:
                expected = window_unpartition(expected, 3, (6, 6), (4, 5))
            got = FeatureExtractor(ours, layer=layer, facet=facet).extract(x)
            assert expected.std() > 0.05
            torch.testing.assert_close(got, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
    assert len(outputs) == 12


@pytest.mark.parametrize(("facet", "run"), [("token", 2), ("key", 1)])
@pytest.mark.parametrize("make", [timm_net, lambda: upstream_pair()[1]], ids=["timm", "detectron2"])
def test_only_the_blocks_needed_are_run(make, facet: str, run: int) -> None:
    net = make()
    called: list[int] = []
    for i, block in enumerate(net.vit.blocks if isinstance(net, TimmViT) else net.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: called.append(i))
    FeatureExtractor(net, layer=1, facet=facet).extract(images(net))
    assert called == list(range(run))


def test_projections_of_another_width() -> None:
    if "num_kv_heads" not in inspect.signature(Eva).parameters:
        pytest.skip("this timm has no keys that heads share")
    net = timm_net("dinov3", attn_type="rope", qkv_fused=False, num_kv_heads=2)
    key, query = (FeatureExtractor(net, BilinearUpsample(), facet=facet) for facet in ("key", "query"))
    assert key.output_shape()["last_feat"].channels == 24
    assert query.output_shape()["last_feat"].channels == 48
    assert key(images(net))["last_feat"].shape[1] == 24
    assert (key.feature_spec().in_channels, key.embed_dim) == (24, 48)


# --- as a backbone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_lifted(steps: int) -> None:
    net, lift = timm_net("registers"), LiFT(48, 14)
    randomise(lift, 2)
    extractor = FeatureExtractor(net, lift, layer=1, facet="key", steps=steps, out_feature="lifted").eval()
    x = images(net)
    with torch.no_grad():
        features = extractor.extract(x)
        out = extractor(x)["lifted"]
        assert torch.equal(out, lift.upsample(x, features, steps))
    assert features.shape == (2, 48, 3, 4)
    assert out.shape == (2, 48, 3 * 2**steps, 4 * 2**steps)
    assert extractor.output_shape() == {"lifted": ShapeSpec(channels=48, stride=14 / 2**steps)}
    assert steps == 2 or isinstance(extractor.output_shape()["lifted"].stride, int)


def test_names_and_facts() -> None:
    for net in (timm_net("registers"), upstream_pair()[1]):
        extractor = FeatureExtractor(net, LiFT(48, net.patch_size))
        assert {name.split(".")[0] for name in extractor.state_dict()} == {"net", "lift"}
        assert {n[4:] for n in extractor.state_dict() if n.startswith("net.")} == set(net.state_dict())
        assert (extractor.embed_dim, extractor.num_heads, extractor.depth) == (48, 4, 3)
        assert extractor.patch_size == extractor.size_divisibility == (14 if isinstance(net, TimmViT) else 16)
        assert (extractor.pixel_mean, extractor.pixel_std) == (net.pixel_mean, net.pixel_std)
    assert extractor.pixel_mean is None
    plain = FeatureExtractor(net)
    assert plain.steps == 0 and plain.output_shape()["last_feat"].stride == 16
    assert all(name.startswith("net.") for name in plain.state_dict())


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (timm_net, {"layer": 3}, "layer 3 is no block: the ViT has 3, 0 to 2 or -3 to -1"),
        (timm_net, {"layer": -4}, "layer -4 is no block"),
        (timm_net, {"facet": "keys"}, "facet is 'keys'; it can be one of token, query, key, value"),
        (timm_net, {"facet": "key", "norm": True}, "not for a key"),
        (lambda: timm_net(norm=False), {"norm": True}, "norm=True, and this ViT has no norm"),
        (lambda: upstream_pair()[1], {"norm": True}, "norm=True, and this ViT has no norm"),
        (lambda: UpstreamViT(**UPSTREAM), {}, "lift_det.ViT .*not a detectron2"),
        (timm_net, {"steps": -1}, "steps=-1"),
        (timm_net, {"lift": LiFT(48, 8)}, "LiFT is for 48 channels and patches of 8 pixels, the ViT has 48 and 16"),
        (timm_net, {"lift": LiFT(64, 16)}, "64 channels.*the ViT has 48"),
        (timm_net, {"allow_lift": ["backbones"]}, r"\['backbones'\]; what is compared is \['backbone'"),
        (
            lambda: TimmViT("vit_small_patch16_18x2_224", **SMALL, img_size=64),
            {"facet": "value"},
            "ParallelThingsBlock, whose attention has no value",
        ),
    ],
)
def test_impossible_features_are_refused(make, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(make(), **kwargs)


def test_part_of_a_patch_is_refused() -> None:
    for net in (timm_net(), upstream_pair()[1]):
        with pytest.raises(ValueError, match="40×48"):
            FeatureExtractor(net, layer=0, facet="key").extract(torch.zeros(1, 3, 40, 48))


# --- which LiFT belongs to them ------------------------------------------------------------------------------------


def test_feature_spec() -> None:
    spec = FeatureExtractor(timm_net("registers"), layer=-2, facet="key").feature_spec()
    assert len(spec.weights.split()) > 12
    assert dataclasses.replace(spec, weights=None).to_metadata() == {
        "backbone": "vit_small_patch14_reg4_dinov2 depth=3 embed_dim=48 num_heads=4",  # the image size is no other net
        "in_channels": "48",
        "patch_size": "14",
        "layer": "1",
        "facet": "key",
        "final_norm": "false",
        "pixel_mean": "123.675 116.28 103.53",
        "pixel_std": "58.395 57.12 57.375",
    }
    assert FeatureExtractor(timm_net("registers"), layer=1, facet="key").feature_spec(weights=False).weights is None
    ours = FeatureExtractor(upstream_pair()[1]).feature_spec()
    assert ours.backbone == "detectron2 ViT(embed_dim=48, depth=3, num_heads=4, patch_size=16)"
    assert (ours.layer, ours.final_norm, ours.pixel_mean) == (2, False, None)
    assert [FeatureExtractor(timm_net(), norm=n).feature_spec().final_norm for n in (None, False)] == [True, False]
    named = TimmViT("vit_tiny_patch16_224", **SMALL, act_layer=nn.ReLU, drop_path_rate=0.1, init_values=None)
    assert named.description == "vit_tiny_patch16_224 act_layer=ReLU depth=3 embed_dim=48 num_heads=4"


def test_fingerprint_does_not_depend_on_the_grid() -> None:
    small = timm_net()
    large = TimmViT("vit_tiny_patch16_224", **{**SMALL, "img_size": 128})
    state = {k: v for k, v in small.state_dict().items() if "pos_embed" not in k}
    large.load_state_dict(state, strict=False)
    assert weights_fingerprint(small) == weights_fingerprint(large)
    assert small.description == large.description


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of timm_net()."""
    path = tmp_path / "vit.safetensors"
    save_file({k: v.contiguous() for k, v in timm_net().vit.state_dict().items()}, str(path))
    return path


def with_weights(checkpoint: Path, **kwargs) -> TimmViT:
    name, small, _ = NETS["vit"]
    return TimmViT(name, checkpoint=checkpoint, **{**small, **kwargs}).eval()


def test_lift_of_the_same_features_is_accepted(checkpoint: Path, tmp_path: Path) -> None:
    net = with_weights(checkpoint)
    lift = trained_lift(FeatureExtractor(net), tmp_path / "lift.safetensors")
    assert lift.metadata["backbone"] == "vit_tiny_patch16_224 depth=3 embed_dim=48 num_heads=4"
    half = with_weights(checkpoint).half()
    for same in (net, half):
        FeatureExtractor(same, lift)
        LiFTFeaturePyramid(same, lift, "last_feat", 8, (4, 8, 16))


@pytest.mark.parametrize(
    ("changes", "name", "trained_with", "given"),
    [
        (
            {"backbone": "vit_tiny_patch16_224 depth=3 embed_dim=48 num_heads=8"},
            "backbone",
            "num_heads=8",
            "num_heads=4",
        ),
        ({"layer": "0"}, "layer", "0", "2"),
        ({"facet": "key"}, "facet", "key", "token"),
        ({"final_norm": "false"}, "final_norm", "false", "true"),
        ({"weights": "1 2"}, "weights", "2 tensors", "tensors"),
    ],
)
def test_lift_of_other_features_is_refused(
    changes: dict, name: str, trained_with: str, given: str, checkpoint: Path, tmp_path: Path
) -> None:
    net = with_weights(checkpoint)
    lift = trained_lift(FeatureExtractor(net), tmp_path / "lift.safetensors", **changes)
    pattern = f"{name}: trained with '[^']*{trained_with}', given '[^']*{given}'"
    for build in (
        lambda **kwargs: FeatureExtractor(net, lift, **kwargs),
        lambda **kwargs: LiFTFeaturePyramid(net, lift, "last_feat", 8, (4, 8, 16), **kwargs),
    ):
        with pytest.raises(CheckpointError, match=pattern) as caught:
            build()
        assert f"allow_lift=['{name}']" in str(caught.value)
        assert str(caught.value).count("trained with '") == 1  # nothing else differs
        build(allow_lift=(name,))
        build(allow_lift=["facet", "backbone", "layer", "final_norm", "weights"])


def test_extractor_of_another_block_or_facet_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    net = with_weights(checkpoint)
    lift = trained_lift(FeatureExtractor(net, layer=1, facet="key"), tmp_path / "lift.safetensors")
    FeatureExtractor(net, lift, layer=-2, facet="key")
    with pytest.raises(CheckpointError, match="layer: trained with '1', given '2'") as caught:
        FeatureExtractor(net, lift)
    assert "facet: trained with 'key', given 'token'" in str(caught.value)
    with pytest.raises(CheckpointError, match="layer: trained with '1', given '2'"):
        LiFTFeaturePyramid(net, lift, "last_feat", 8, (4, 8, 16))
    # a pyramid on those features
    pyramid = LiFTFeaturePyramid(
        FeatureExtractor(net, layer=1, facet="key"), lift, "last_feat", 8, (4, 8, 16), freeze_net=True
    )
    assert pyramid(images(net, 4, 4))["p3"].shape == (2, 8, 8, 8)


def test_other_weights_are_refused_only_where_they_are_known(checkpoint: Path, tmp_path: Path) -> None:
    lift = trained_lift(FeatureExtractor(timm_net(seed=7)), tmp_path / "lift.safetensors")
    net = with_weights(checkpoint)
    first = [weights_fingerprint(n).split()[0] for n in (timm_net(seed=7), net)]
    pattern = "weights: trained with 'tensor 0 on: {} .*given 'tensor 0 on: {} ".format(*map(re.escape, first))
    with pytest.raises(CheckpointError, match=pattern):
        FeatureExtractor(net, lift)
    with pytest.raises(CheckpointError, match="weights: trained with"):
        LiFTFeaturePyramid(net, lift, "last_feat", 8, (4, 8, 16))
    # random ones may be replaced by an init_checkpoint; after that they can be checked by hand
    name, small, _ = NETS["vit"]
    later = FeatureExtractor(TimmViT(name, **small), lift)
    LiFTFeaturePyramid(later.net, lift, "last_feat", 8, (4, 8, 16))
    later.net.load_state_dict(timm_net(seed=7).state_dict())
    lift.trained_on.check(later.feature_spec())
    later.net.load_state_dict(net.state_dict())
    with pytest.raises(CheckpointError, match="lift.safetensors was trained on other features"):
        lift.trained_on.check(later.feature_spec(), source="lift.safetensors")


def test_lift_that_says_nothing_is_accepted(checkpoint: Path, tmp_path: Path) -> None:
    net = with_weights(checkpoint)
    # no more than its own settings are in its file: another norm than the ViT's final one among them
    save_lift(LiFT(48, 16), tmp_path / "lift.safetensors")
    lift = load_lift(tmp_path / "lift.safetensors")
    assert lift.metadata["norm"] == "BN"
    for silent in (LiFT(48, 16), lift, BilinearUpsample(), None):
        FeatureExtractor(net, silent)


def test_backbone_that_says_nothing_is_accepted(tmp_path: Path) -> None:
    _, ours = upstream_pair()
    lift = trained_lift(FeatureExtractor(timm_net()), tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match=r"given 'detectron2 ViT\(embed_dim=48"):
        LiFTFeaturePyramid(ours, lift, "last_feat", 8, (4, 8, 16))
    LiFTFeaturePyramid(UpstreamViT(**UPSTREAM), lift, "last_feat", 8, (4, 8, 16))


def _training(tmp_path, **which):
    """A checkpoint of LiFT's training, as its trainer writes it."""
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, pretrain_img_size=64)
    model = LiFTPretraining(net, LiFT(32, 8), [0.0] * 3, [255.0] * 3, **which)
    torch.save({"model": model.state_dict(), "iteration": 7}, tmp_path / "model.pth")
    return model, tmp_path / "model.pth"


def test_a_training_checkpoint_says_what_its_lift_is_for(tmp_path):
    _, path = _training(tmp_path, layer=1, facet="key")
    loaded = load_lift(path)  # patch size and kind are said, too
    assert (loaded.metadata["layer"], loaded.metadata["facet"], loaded.patch_size) == ("1", "key", 8)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, pretrain_img_size=64)
    with pytest.raises(CheckpointError, match="layer: trained with '1', given '2'"):
        FeatureExtractor(net, LiFT(32, 8, checkpoint=path))
    FeatureExtractor(net, LiFT(32, 8, checkpoint=path), layer=1, facet="key")


def test_a_training_goes_on_with_its_own_features_alone(tmp_path):
    _, path = _training(tmp_path, layer=1, facet="key")
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, pretrain_img_size=64)
    other = LiFTPretraining(net, LiFT(32, 8), [0.0] * 3, [255.0] * 3, layer=2)
    with pytest.raises(CheckpointError, match="(?s)layer: trained with '1', given '2'.*facet: trained with 'key'"):
        Checkpointer(other).load(str(path))
    same = LiFTPretraining(net, LiFT(32, 8), [0.0] * 3, [255.0] * 3, layer=1, facet="key")
    Checkpointer(same).load(str(path))


def test_a_lift_is_compared_with_a_vit_that_comes_later(tmp_path):
    model, _ = _training(tmp_path)
    save_lift(model.lift, tmp_path / "lift.safetensors", model.backbone.feature_spec().to_metadata())

    def detector():
        net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, pretrain_img_size=64)
        return LiFTPretraining(net, LiFT(32, 8, checkpoint=tmp_path / "lift.safetensors"), [0.0] * 3, [255.0] * 3)

    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.net.")}
    detector().load_state_dict(own, strict=False)
    others = {name: value * 1.5 for name, value in own.items()}
    with pytest.raises(CheckpointError, match="weights"):
        detector().load_state_dict(others, strict=False)
    # a fine-tuned detector brings both: they belong together
    both = {name: value * 1.5 for name, value in model.state_dict().items() if name.startswith("backbone.")}
    detector().load_state_dict(both, strict=False)


def test_a_lazy_upsampler_is_built_for_these_features():
    net = timm_net("registers")
    lift = FeatureExtractor(net, LazyUpsampler("lift_plus")).lift
    assert (type(lift), lift.in_channels, lift.patch_size) == (LiFTPlus, 48, 14)
    assert lift.feature_spec.backbone == net.description
    training = LiFTPretraining(net, LazyUpsampler())
    assert type(training.lift) is LiFTPlus
