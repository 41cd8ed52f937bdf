"""FeatureExtractor against timm and detectron2, upsampled features, and the check of a LiFT's features."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
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
from lift_det.modeling import LazyUpsampler, LiFTPlus, LiFTPretraining, upsampled_features, whole_patches
from lift_det.modeling.feature_spec import weights_fingerprint
from lift_det.modeling.upsamplers import resize
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


def trained_lift(extractor: FeatureExtractor, path: Path, **changes: str) -> LiFT:
    """A LiFT's file as training on these features leaves it, read again."""
    settings = {**extractor.feature_spec().to_metadata(), **changes}
    save_lift(LiFT(extractor.output_shape()["last_feat"].channels, extractor.patch_size), path, settings)
    return load_lift(path)


# --- the features --------------------------------------------------------------------------------------------------


@every_net
def test_facets_are_timms(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys before their norm and rotation, and values, in a timm block's attention."""
    net = timm_net(kind)
    twin, x = twin_of(kind, net), images(net)
    original, values, seen = F.scaled_dot_product_attention, [], {}
    attention = twin.blocks[1].attn
    attention.q_norm.register_forward_pre_hook(lambda module, args: seen.update(query=args[0]))
    attention.k_norm.register_forward_pre_hook(lambda module, args: seen.update(key=args[0]))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, **kw: values.append(v) or original(q, k, v, **kw)
        )
        twin.forward_features(x)
    seen["value"] = values[1]
    for facet, heads in seen.items():
        tokens = heads.transpose(1, 2).flatten(2)[:, NETS[kind][2] :]  # (N, HW, C)
        with torch.no_grad():
            got = FeatureExtractor(net, layer=1, facet=facet).extract(x)
        assert tokens.std() > 0.1
        torch.testing.assert_close(got, tokens.transpose(1, 2).reshape(2, -1, 3, 4), atol=1e-5, rtol=1e-5)


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
    assert key.feature_spec().in_channels == 24


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


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (timm_net, {"layer": 3}, "layer=3"),
        (timm_net, {"layer": -4}, "layer=-4"),
        (timm_net, {"facet": "keys"}, "'keys'"),
        (timm_net, {"facet": "key", "final_norm": True}, "final_norm"),
        (lambda: timm_net(final_norm=False), {"final_norm": True}, "final_norm"),
        (lambda: upstream_pair()[1], {"final_norm": True}, "final_norm"),
        (lambda: UpstreamViT(**UPSTREAM), {}, r"lift_det\.ViT"),
        (timm_net, {"steps": -1}, "steps=-1"),
        (timm_net, {"lift": LiFT(48, 8)}, "48 .* 8 .* 48 .* 16"),
        (timm_net, {"lift": LiFT(64, 16)}, "64 .* 48"),
        (timm_net, {"ignore_mismatch": ["backbones"]}, "'backbones'"),
        (lambda: TimmViT("vit_small_patch16_18x2_224", **SMALL, img_size=64), {"facet": "value"}, "Parallel.*value"),
    ],
)
def test_impossible_features(make, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(make(), **kwargs)


# --- images and upsampled features -----------------------------------------------------------------------------------


def small_vit() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, pretrain_img_size=64)


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        ((448, 448), 1, (448, 448)),
        ((3000, 4000), 1, (392, 504)),  # 388 and 517 to multiples of 28
        ((375, 500), 2, (392, 504)),  # of 56
        ((10, 4000), 1, (28, 8960)),
    ],
)
def test_whole_patches(shape, steps, expected):
    x = whole_patches(np.full((*shape, 3), 200, np.uint8), 14, steps)
    assert x.shape == (1, 3, *expected) and x.dtype == torch.float32
    assert torch.allclose(x, torch.full_like(x, 200.0), atol=0.01)


def test_upsampled_features():
    net = small_vit()
    extractor = FeatureExtractor(net).train()
    x = torch.randn(2, 3, 64, 96)
    maps = upsampled_features(extractor, {"bilinear": BilinearUpsample(), "lift": LiFT(32, 8)}, x, steps=2)
    assert extractor.training and not maps["true"].requires_grad
    with torch.no_grad():
        net.eval()
        assert torch.equal(maps["true"], net.feature_map(x))
        assert torch.equal(maps["vit"], net.feature_map(resize(x, (16, 24))))
    assert torch.equal(maps["bilinear"], resize(maps["vit"], (8, 12)))
    # an untrained residual LiFT is bilinear in each doubling
    assert torch.allclose(maps["lift"], resize(resize(maps["vit"], (4, 6)), (8, 12)), atol=1e-5)
    with pytest.raises(ValueError, match="multiples of 16"):
        upsampled_features(extractor, {}, torch.zeros(1, 3, 64, 72))
    with pytest.raises(ValueError, match="'true'"):
        upsampled_features(extractor, {"true": BilinearUpsample()}, x)


class Model(nn.Module):
    """The parts of a detector that FeatureExtractor.of_model needs."""

    def __init__(self, backbone, input_format):
        super().__init__()
        self.backbone, self.input_format = backbone, input_format
        self.register_buffer("pixel_mean", torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_normalize_like_the_model(channels, dtype):
    net = small_vit().to(dtype)
    detector = Model(LiFTFeaturePyramid(net, LiFT(32, 8), "last_feat", 8), channels)
    extractor = FeatureExtractor.of_model(detector)
    assert extractor.net is net and extractor.lift is detector.backbone.lift
    x = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)  # RGB
    ordered = x if channels == "RGB" else x.flip(1)
    expected = (ordered - detector.pixel_mean) / detector.pixel_std
    torch.testing.assert_close(extractor.normalize(x), expected.to(dtype))
    with pytest.raises(ValueError, match="pixel_mean"):
        FeatureExtractor(net).normalize(x)


def test_of_model_takes_the_trainings_features_and_checks_another_lift(tmp_path):
    net = small_vit()
    lift = LiFT(32, 8)
    training = Model(FeatureExtractor(net, lift, layer=0, facet="key"), "RGB")
    extractor = FeatureExtractor.of_model(training)
    assert (extractor.layer, extractor.facet) == (0, "key")
    spec = training.backbone.feature_spec()
    save_lift(lift, tmp_path / "own.safetensors", spec.to_metadata())
    own = load_lift(tmp_path / "own.safetensors")
    assert FeatureExtractor.of_model(training, own).lift is own
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight.mul_(1.5)
    with pytest.raises(CheckpointError, match="weights"):
        FeatureExtractor.of_model(training, load_lift(tmp_path / "own.safetensors"))
    save_lift(lift, tmp_path / "other.safetensors", dataclasses.replace(spec, facet="token").to_metadata())
    with pytest.raises(CheckpointError, match="'token'.*'key'"):
        FeatureExtractor.of_model(training, load_lift(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="Linear"):
        FeatureExtractor.of_model(nn.Linear(1, 1))


# --- the features that a LiFT was trained on ------------------------------------------------------------------------


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
    named = TimmViT("vit_tiny_patch16_224", **SMALL, act_layer=nn.ReLU, drop_path_rate=0.1, init_values=None)
    assert named.description == "vit_tiny_patch16_224 act_layer=ReLU depth=3 embed_dim=48 num_heads=4"


def test_fingerprint_does_not_depend_on_the_grid() -> None:
    small, large = timm_net(), timm_net(img_size=128)
    large.load_state_dict({k: v for k, v in small.state_dict().items() if "pos_embed" not in k}, strict=False)
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


def test_lift_of_the_same_features(checkpoint: Path, tmp_path: Path) -> None:
    net = with_weights(checkpoint)
    lift = trained_lift(FeatureExtractor(net), tmp_path / "lift.safetensors")
    silent = tmp_path / "silent.safetensors"  # does not state its features
    save_lift(LiFT(48, 16), silent)
    for same in (net, with_weights(checkpoint).half()):
        for fitting in (lift, LiFT(48, 16), load_lift(silent), BilinearUpsample(), None):
            FeatureExtractor(same, fitting)
            LiFTFeaturePyramid(same, fitting, "last_feat", 8, (4, 8, 16))


@pytest.mark.parametrize(
    ("name", "trained_with", "given"),
    [
        ("backbone", "vit_tiny_patch16_224 depth=3 embed_dim=48 num_heads=8", "num_heads=4"),
        ("layer", "0", "2"),
        ("facet", "key", "token"),
        ("final_norm", "false", "true"),
        ("weights", "1", "tensor 0"),
    ],
)
def test_lift_of_other_features(name: str, trained_with: str, given: str, checkpoint: Path, tmp_path: Path) -> None:
    net = with_weights(checkpoint)
    lift = trained_lift(FeatureExtractor(net), tmp_path / "lift.safetensors", **{name: trained_with})
    for build in (
        lambda **kwargs: FeatureExtractor(net, lift, **kwargs),
        lambda **kwargs: LiFTFeaturePyramid(net, lift, "last_feat", 8, (4, 8, 16), **kwargs),
    ):
        with pytest.raises(CheckpointError, match=f"{name}: .*{trained_with.split()[-1]}.*{given}") as caught:
            build()
        assert f"ignore_mismatch=['{name}']" in str(caught.value)  # nothing else differs
        build(ignore_mismatch=(name,))


def test_lift_of_another_block(checkpoint: Path, tmp_path: Path) -> None:
    net = with_weights(checkpoint)
    lift = trained_lift(FeatureExtractor(net, layer=1, facet="key"), tmp_path / "lift.safetensors")
    FeatureExtractor(net, lift, layer=-2, facet="key")
    with pytest.raises(CheckpointError, match="(?s)'1'.*'2'.*'key'.*'token'"):
        LiFTFeaturePyramid(net, lift, "last_feat", 8, (4, 8, 16))
    # a pyramid on those features
    extractor = FeatureExtractor(net, layer=1, facet="key")
    pyramid = LiFTFeaturePyramid(extractor, lift, "last_feat", 8, (4, 8, 16), freeze_net=True)
    assert pyramid(images(net, 4, 4))["p3"].shape == (2, 8, 8, 8)


def test_weights_are_compared_where_they_are_known(checkpoint: Path, tmp_path: Path) -> None:
    lift = trained_lift(FeatureExtractor(timm_net(seed=7)), tmp_path / "lift.safetensors")
    net = with_weights(checkpoint)
    for build in (FeatureExtractor, lambda *args: LiFTFeaturePyramid(*args, "last_feat", 8, (4, 8, 16))):
        with pytest.raises(CheckpointError, match="weights"):
            build(net, lift)
    # random ones may be replaced by an init_checkpoint, and are checked by hand
    later = FeatureExtractor(timm_net(), lift)
    LiFTFeaturePyramid(later.net, lift, "last_feat", 8, (4, 8, 16))
    later.net.load_state_dict(timm_net(seed=7).state_dict())
    lift.trained_on.check(later.feature_spec())
    later.net.load_state_dict(net.state_dict())
    with pytest.raises(CheckpointError, match="lift.safetensors"):
        lift.trained_on.check(later.feature_spec(), source="lift.safetensors")


def test_backbones_of_detectron2(tmp_path: Path) -> None:
    _, ours = upstream_pair()
    lift = trained_lift(FeatureExtractor(timm_net()), tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match=r"detectron2 ViT\(embed_dim=48"):
        LiFTFeaturePyramid(ours, lift, "last_feat", 8, (4, 8, 16))
    LiFTFeaturePyramid(UpstreamViT(**UPSTREAM), lift, "last_feat", 8, (4, 8, 16))


def _training(lift=None, **which):
    return LiFTPretraining(small_vit(), lift or LiFT(32, 8), [0.0] * 3, [255.0] * 3, **which)


def test_training_checkpoints_state_their_features(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": _training(layer=1, facet="key").state_dict(), "iteration": 7}, path)
    loaded = load_lift(path)
    assert (loaded.trained_on.layer, loaded.trained_on.facet, loaded.patch_size) == (1, "key", 8)
    FeatureExtractor(small_vit(), LiFT(32, 8, checkpoint=path), layer=1, facet="key")
    with pytest.raises(CheckpointError, match="'1'.*'2'"):
        FeatureExtractor(small_vit(), LiFT(32, 8, checkpoint=path))
    Checkpointer(_training(layer=1, facet="key")).load(str(path))
    with pytest.raises(CheckpointError, match="(?s)'1'.*'2'.*'key'.*'token'"):
        Checkpointer(_training(layer=2)).load(str(path))


def test_a_lift_is_compared_with_a_vit_that_is_loaded_later(tmp_path):
    model = _training()
    save_lift(model.lift, tmp_path / "lift.safetensors", model.backbone.feature_spec().to_metadata())

    def load(state):
        _training(LiFT(32, 8, checkpoint=tmp_path / "lift.safetensors")).load_state_dict(state, strict=False)

    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.net.")}
    load(own)
    with pytest.raises(CheckpointError, match="weights"):
        load({name: value * 1.5 for name, value in own.items()})
    # a fine-tuned detector has both: they belong together
    load({name: value * 1.5 for name, value in model.state_dict().items() if name.startswith("backbone.")})


def test_lazy_upsamplers_are_built_for_the_features():
    net = timm_net("registers")
    lift = FeatureExtractor(net, LazyUpsampler("lift_plus")).lift
    assert (type(lift), lift.in_channels, lift.patch_size) == (LiFTPlus, 48, 14)
    assert lift.feature_spec.backbone == net.description
