"""FeatureExtractor, upsampled features, and the check of a LiFT's features."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import Tensor, nn

from lift_det import BilinearUpsample, FeatureExtractor, LiFT, LiFTFeaturePyramid, TimmViT, ViT, load_lift, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.engine import Checkpointer
from lift_det.modeling import LazyUpsampler, LiFTPlus, LiFTPretraining, upsampled_features, whole_patches
from lift_det.modeling.upsamplers import resize
from tests.modeling.deterministic import randomise

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 4}
REGISTERS = "vit_small_patch14_reg4_dinov2"
VITDET = dict(img_size=64, **SMALL, use_rel_pos=True, window_size=3, window_block_indexes=[0, 2])

pytestmark = pytest.mark.usefixtures("one_thread")


def timm_net(name: str = "vit_tiny_patch16_224", seed: int = 0, img_size: int = 64, **kwargs) -> TimmViT:
    return randomise(TimmViT(name, **SMALL, img_size=img_size, **kwargs), seed)


def images(net: nn.Module, rows: int = 3, columns: int = 4, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, rows * net.patch_size, columns * net.patch_size, generator=generator)


def trained_lift(extractor: FeatureExtractor, folder: Path, **changes: str) -> LiFT:
    """The LiFT of a training on these features, loaded from a file."""
    metadata = {**extractor.feature_spec().to_metadata(), **changes}
    save_lift(LiFT(48, extractor.patch_size), folder / "lift.safetensors", metadata)
    return load_lift(folder / "lift.safetensors")


def pyramid_on(net: nn.Module, lift: nn.Module | None, **options) -> LiFTFeaturePyramid:
    return LiFTFeaturePyramid(net, lift, "last_feat", 8, (4, 8, 16), **options)


# --- the features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("facet", "run"), [("token", 2), ("key", 1)])
@pytest.mark.parametrize("make", [timm_net, lambda: ViT(**VITDET)], ids=["timm", "detectron2"])
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
    net = timm_net("vit_small_patch16_dinov3", attn_type="rope", qkv_fused=False, num_kv_heads=2)
    key, query = (FeatureExtractor(net, BilinearUpsample(), facet=facet) for facet in ("key", "query"))
    assert key.output_shape()["last_feat"].channels == 24
    assert query.output_shape()["last_feat"].channels == 48
    assert key(images(net))["last_feat"].shape[1] == 24
    assert key.feature_spec().in_channels == 24


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_lifted(steps: int) -> None:
    net, lift = timm_net(REGISTERS, img_size=70), randomise(LiFT(48, 14), seed=2)
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
        (timm_net, {"layer": -4}, "layer=-4"),
        (timm_net, {"facet": "keys"}, "'keys'"),
        (timm_net, {"facet": "key", "final_norm": True}, "final_norm"),
        (lambda: timm_net(final_norm=False), {"final_norm": True}, "final_norm"),
        (lambda: ViT(**VITDET), {"final_norm": True}, "final_norm"),
        (lambda: UpstreamViT(**VITDET), {}, r"lift_det\.ViT"),
        (timm_net, {"steps": -1}, "steps=-1"),
        (timm_net, {"lift": LiFT(48, 8)}, "48 .* 8 .* 48 .* 16"),
        (timm_net, {"lift": LiFT(64, 16)}, "64 .* 48"),
        (timm_net, {"ignore_mismatch": ["backbones"]}, "'backbones'"),
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
    spec = FeatureExtractor(timm_net(REGISTERS, img_size=70), layer=-2, facet="key").feature_spec()
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
    ours = FeatureExtractor(ViT(**VITDET)).feature_spec()
    assert ours.backbone == "detectron2 ViT(embed_dim=48, depth=3, num_heads=4, patch_size=16)"
    assert (ours.layer, ours.final_norm, ours.pixel_mean) == (2, False, None)
    named = TimmViT("vit_tiny_patch16_224", **SMALL, act_layer=nn.ReLU, drop_path_rate=0.1, init_values=None)
    assert named.description == "vit_tiny_patch16_224 act_layer=ReLU depth=3 embed_dim=48 num_heads=4"
    small, large = timm_net(), timm_net(img_size=128)
    large.load_state_dict({k: v for k, v in small.state_dict().items() if "pos_embed" not in k}, strict=False)
    assert small.feature_spec() == large.feature_spec()


@pytest.fixture
def net(tmp_path: Path) -> TimmViT:
    """timm_net(), built with its weights."""
    save_file({k: v.contiguous() for k, v in timm_net().vit.state_dict().items()}, str(tmp_path / "vit.safetensors"))
    return TimmViT("vit_tiny_patch16_224", checkpoint=tmp_path / "vit.safetensors", **SMALL, img_size=64).eval()


@pytest.mark.parametrize("build", [FeatureExtractor, pyramid_on])
def test_lift_of_the_same_features(build, net: TimmViT, tmp_path: Path) -> None:
    save_lift(LiFT(48, 16), tmp_path / "no_features.safetensors")
    unknown = load_lift(tmp_path / "no_features.safetensors")
    lift = trained_lift(FeatureExtractor(net), tmp_path)
    for same in (net, copy.deepcopy(net).half()):
        for fitting in (lift, unknown, LiFT(48, 16), BilinearUpsample(), None):
            build(same, fitting)
    lazy = build(net, LazyUpsampler("lift_plus")).lift
    assert (type(lazy), lazy.in_channels, lazy.patch_size) == (LiFTPlus, 48, 16)
    assert lazy.feature_spec.backbone == net.description


@pytest.mark.parametrize("build", [FeatureExtractor, pyramid_on])
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
def test_lift_of_other_features(build, name: str, trained_with: str, given: str, net: TimmViT, tmp_path: Path) -> None:
    lift = trained_lift(FeatureExtractor(net), tmp_path, **{name: trained_with})
    with pytest.raises(CheckpointError, match=f"{name}: .*{trained_with.split()[-1]}.*{given}") as caught:
        build(net, lift)
    assert f"ignore_mismatch=['{name}']" in str(caught.value)  # nothing else differs
    build(net, lift, ignore_mismatch=(name,))


def test_pyramid_on_another_block(net: TimmViT, tmp_path: Path) -> None:
    extractor = FeatureExtractor(net, layer=-2, facet="key")
    lift = trained_lift(extractor, tmp_path)
    assert pyramid_on(extractor, lift, freeze_net=True)(images(net, 4, 4))["p3"].shape == (2, 8, 8, 8)
    for other in (net, ViT(**VITDET)):
        with pytest.raises(CheckpointError, match="(?s)'1'.*'2'.*'key'.*'token'"):
            pyramid_on(other, lift)
    pyramid_on(UpstreamViT(**VITDET), lift)  # does not describe its features


@pytest.mark.parametrize("build", [FeatureExtractor, pyramid_on])
def test_weights_are_compared_where_they_are_known(build, net: TimmViT, tmp_path: Path) -> None:
    lift = trained_lift(FeatureExtractor(timm_net(seed=7)), tmp_path)
    with pytest.raises(CheckpointError, match="weights"):
        build(net, lift)
    later = timm_net()  # random weights may be replaced later
    build(later, lift)
    later.load_state_dict(timm_net(seed=7).state_dict())
    lift.trained_on.check(later.feature_spec())
    later.load_state_dict(net.state_dict())
    with pytest.raises(CheckpointError, match="lift.safetensors"):
        lift.trained_on.check(later.feature_spec(), source="lift.safetensors")


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
