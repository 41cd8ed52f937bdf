"""Files of upsamplers: what they keep, what of them may be left unsaid, and what is refused."""

import json

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from torch import nn
from torch.testing import assert_close

from lift_det import BilinearUpsample, LiFT, LiFTPlus, load_lift, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import FeatureSpec, FeatureUpsampler, build_upsampler, register_upsampler
from lift_det.modeling.upsamplers.base import UPSAMPLERS
from tests.modeling.deterministic import fill_deterministically

pytestmark = pytest.mark.usefixtures("one_thread")


def _inputs(patch_size: int, channels: int = 8):
    torch.manual_seed(0)
    return torch.randn(2, 3, 2 * patch_size, 3 * patch_size), torch.randn(2, channels, 2, 3)


def test_file_keeps_everything(tmp_path):
    lift = LiFT(8, 14)
    fill_deterministically(lift)
    path = tmp_path / "lift.safetensors"
    save_lift(lift, path, {"backbone": "vit_small"})
    loaded = load_lift(path)
    assert (loaded.patch_size, loaded.residual, loaded.training) == (14, True, False)
    assert loaded.metadata["backbone"] == "vit_small"
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in lift.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["lift.safetensors"]


def test_authors_file_loads_with_what_it_does_not_say(tmp_path):
    lift = LiFT(8, 16, residual=False)
    fill_deterministically(lift)
    path = tmp_path / "lift_dino_vits16.pth"
    torch.save({f"module.{k}": v for k, v in lift.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match="load_lift\\(path, patch_size=16, residual=False\\)"):
        load_lift(path)
    loaded = load_lift(path, patch_size=16, residual=False)
    assert torch.equal(loaded.outc.weight, lift.outc.weight)
    built = LiFT(8, 16, residual=False, checkpoint=path)
    assert torch.equal(built.outc.weight, lift.outc.weight)


@pytest.mark.parametrize("norm", ["BN", "LN", "GN", "FrozenBN", "SyncBN", ""])
def test_file_keeps_the_norm(tmp_path, norm):
    lift = LiFT(64, 16, norm=norm)
    save_lift(lift, tmp_path / "lift.safetensors")
    loaded = load_lift(tmp_path / "lift.safetensors")
    assert loaded.norm == norm
    images, features = torch.randn(1, 3, 32, 32), torch.randn(1, 64, 2, 2)
    torch.nn.init.ones_(lift.outc.weight), torch.nn.init.ones_(loaded.outc.weight)
    assert torch.equal(lift.eval()(images, features), loaded(images, features))


def test_batch_norm_files_load_frozen(tmp_path):
    lift = LiFT(8, 16)
    fill_deterministically(lift)
    save_lift(lift, tmp_path / "lift.safetensors")
    frozen = LiFT(8, 16, norm="FrozenBN", checkpoint=tmp_path / "lift.safetensors")
    images, features = _inputs(16)
    assert_close(frozen(images, features), lift.eval()(images, features), atol=1e-5, rtol=1e-5)


def test_checkpoint_of_a_training_or_a_detector(tmp_path):
    lift = LiFT(8, 16)
    fill_deterministically(lift)
    state = {f"backbone.lift.{k}": v for k, v in lift.state_dict().items()}
    torch.save({"model": {**state, "backbone.net.pos_embed": torch.zeros(3)}, "iteration": 9}, tmp_path / "model.pth")
    for loaded in (
        load_lift(tmp_path / "model.pth", patch_size=16, residual=True),
        LiFT(8, 16, checkpoint=tmp_path / "model.pth"),
    ):
        assert torch.equal(loaded.outc.weight, lift.outc.weight)


def test_checkpoint_for_another_vit_is_refused(tmp_path):
    path = tmp_path / "lift.safetensors"
    save_lift(LiFT(8, 14), path)
    with pytest.raises(CheckpointError, match="stated patch_size=16, in the file patch_size=14"):
        LiFT(8, 16, checkpoint=path)
    with pytest.raises(CheckpointError, match="stated in_channels=12, in the file in_channels=8"):
        LiFT(12, 14, checkpoint=path)
    with pytest.raises(CheckpointError, match="stated residual=False, in the file residual=True"):
        LiFT(8, 14, residual=False, checkpoint=path)
    with pytest.raises(CheckpointError, match="stated name=lift_plus, in the file name=lift"):
        LiFTPlus(8, 14, checkpoint=path)
    torch.save(dict(LiFT(8, 16).state_dict()), tmp_path / "bare.pth")  # says nothing about itself: its shapes must do
    with pytest.raises(CheckpointError, match="stated in_channels=12, in the file in_channels=8"):
        LiFT(12, 16, checkpoint=tmp_path / "bare.pth")


def test_not_a_lift(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is no LiFT"):
        load_lift(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load_lift(tmp_path / "missing.safetensors")


KINDS = [
    (LiFT, {}, {"network": "paper", "pool": "0", "normalize": "false", "keep_length": "false", "residual": "true"}),
    (
        LiFT,
        dict(residual=False, keep_length=True),
        {"network": "paper", "pool": "0", "normalize": "false", "keep_length": "true", "residual": "false"},
    ),
    (LiFTPlus, {}, {"network": "trunk", "pool": "3", "normalize": "true", "keep_length": "true", "residual": "true"}),
    (
        LiFTPlus,
        dict(pool=0, normalize=False, keep_length=False),
        {"network": "trunk", "pool": "0", "normalize": "false", "keep_length": "false", "residual": "true"},
    ),
    (
        LiFTPlus,
        dict(network="paper", pool=5, normalize=False, keep_length=False),
        {"network": "paper", "pool": "5", "normalize": "false", "keep_length": "false", "residual": "true"},
    ),
]


def _trained(kind, **options):
    lift = kind(16, 14, **options).eval()
    fill_deterministically(lift)
    return lift


@pytest.mark.parametrize(("kind", "options", "old"), KINDS)
def test_files_say_what_they_hold(kind, options, old, tmp_path):
    lift = _trained(kind, **options)
    images, features = _inputs(14, 16)
    expected = lift(images, features)
    save_lift(lift, tmp_path / "lift.safetensors")
    # a training's checkpoint has it beside its tensors
    training = nn.ModuleDict({"backbone": nn.ModuleDict({"lift": lift})})
    torch.save({"model": training.state_dict()}, tmp_path / "model.pth")
    for name in ("lift.safetensors", "model.pth"):
        loaded = load_lift(tmp_path / name)
        assert (type(loaded), loaded.settings()) == (kind, lift.settings())
        assert torch.equal(loaded(images, features), expected)
        built = kind(16, 14, **options, checkpoint=tmp_path / name).eval()
        assert torch.equal(built(images, features), expected)
        assert built.trained and not lift.trained


@pytest.mark.parametrize(("kind", "options", "old"), KINDS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_from_before_kinds_had_names(kind, options, old, suffix, tmp_path):
    """Until November 2026 a file had network, pool, normalize, keep_length and residual, and no name."""
    import safetensors.torch

    lift = _trained(kind, **options)
    metadata = {"in_channels": "16", "patch_size": "14", "norm": "BN", "layer": "3", **old}
    path = tmp_path / f"lift{suffix}"
    if suffix == ".pth":
        state = lift.state_dict(prefix="backbone.lift.")
        state._metadata["backbone.lift"]["lift"] = metadata
        torch.save({"model": state}, path)
    else:
        safetensors.torch.save_file(lift.state_dict(), path, {**metadata, "format": "lift_det"})
    loaded = load_lift(path)
    images, features = _inputs(14, 16)
    assert type(loaded) is kind
    assert torch.equal(loaded(images, features), lift(images, features))
    assert (loaded.trained_on.layer, loaded.trained_on.patch_size) == (3, 14)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (dict(name="lift"), "stated name=lift, in the file name=lift_plus"),
        (dict(name="bilinear"), "stated name=bilinear, in the file name=lift_plus"),
        (dict(pool=5), "stated pool=5, in the file pool=3"),
        (dict(keep_length=False), "stated keep_length=False, in the file keep_length=True"),
        (dict(in_channels=8, patch_size=16), "in_channels=8, in the file in_channels=16\n.*patch_size=16, in the file"),
        (dict(residual=False), "stated residual=False, in the file residual=True"),
        (dict(blocks=3), "stated blocks=3, which lift_plus does not have"),
    ],
)
def test_what_contradicts_a_file_is_refused(stated, message, tmp_path):
    save_lift(_trained(LiFTPlus), tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match=message):
        build_upsampler(**stated, checkpoint=tmp_path / "lift.safetensors")
    agreed = dict(name="lift_plus", in_channels=16, patch_size=14, pool=3, keep_length=None)
    build_upsampler(**agreed, checkpoint=tmp_path / "lift.safetensors")


def test_another_norm_is_no_contradiction(tmp_path):
    lift = _trained(LiFTPlus)
    save_lift(lift, tmp_path / "lift.safetensors")
    frozen = build_upsampler(checkpoint=tmp_path / "lift.safetensors", norm="FrozenBN").eval()
    images, features = _inputs(14, 16)
    assert_close(frozen(images, features), lift(images, features), atol=1e-4, rtol=1e-4)


def test_upsampler_without_weights(tmp_path):
    save_lift(BilinearUpsample(), tmp_path / "bilinear.safetensors", {"layer": "3"})
    loaded = load_lift(tmp_path / "bilinear.safetensors")
    assert isinstance(loaded, BilinearUpsample) and loaded.trained_on.layer == 3


def test_unregistered_kind_is_named(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", {"upsampler": "AnyUp"})
    with pytest.raises(CheckpointError, match="'AnyUp', which is not registered"):
        load_lift(tmp_path / "a.safetensors")


def test_metadata_is_text(tmp_path):
    from safetensors import safe_open

    save_lift(_trained(LiFTPlus), tmp_path / "lift.safetensors", {"reconstruction": json.dumps({"2x": 1})})
    with safe_open(str(tmp_path / "lift.safetensors"), "pt") as file:
        metadata = file.metadata()
    expected = {"upsampler": "lift_plus", "in_channels": "16", "pool": "3", "normalize": "true", "network": "trunk"}
    assert expected.items() <= metadata.items()


class Widths(FeatureUpsampler):
    """An upsampler with settings of every JSON type, one of them named as a field of FeatureSpec."""

    def __init__(self, widths=(1,), mode=None, layer=0, text="16", scale=1.0):
        super().__init__()
        self.arguments = dict(widths=widths, mode=mode, layer=layer, text=text, scale=scale)
        self.module = nn.Linear(2, 2)

    def forward(self, images, features, output_size=None):
        return features

    def settings(self):
        return self.arguments


@pytest.fixture
def registered():
    register_upsampler("test_widths")(Widths)
    yield
    del UPSAMPLERS["test_widths"]


def test_settings_of_any_registered_class_come_back(registered, tmp_path):
    settings = dict(widths=[3, 4], mode=None, layer=2, text="16", scale=0.5)
    upsampler = instantiate(LazyCall(Widths)(**settings))  # lists are OmegaConf's then
    save_lift(upsampler, tmp_path / "a.safetensors", {"layer": "11", "steps": "7"})
    loaded = load_lift(tmp_path / "a.safetensors")
    assert (type(loaded), loaded.settings()) == (Widths, settings)
    assert torch.equal(loaded.module.weight, upsampler.module.weight)  # its own module is no DataParallel's
    assert loaded.trained_on.layer == 11
    # beside the tensors of a checkpoint, too
    upsampler.use_features(FeatureSpec(layer=11))
    upsampler.load_state_dict(upsampler.state_dict())


def test_a_subclass_does_not_save_under_its_parents_name(tmp_path):
    class Other(LiFTPlus):
        pass

    save_lift(Other(16, 14), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="Other', which is not registered"):
        load_lift(tmp_path / "a.safetensors")


def test_kept_lengths_are_never_guessed(tmp_path):
    torch.save(dict(LiFTPlus(16, 14).state_dict()), tmp_path / "bare.pth")  # without torch's metadata
    with pytest.raises(CheckpointError, match="does not say patch_size and keep_length"):
        load_lift(tmp_path / "bare.pth")
    assert load_lift(tmp_path / "bare.pth", patch_size=14, keep_length=True).keep_length


def test_a_detector_without_lift_has_none(tmp_path):
    torch.save({"model": {"backbone.net.w": torch.zeros(1), "roi_heads.w": torch.zeros(1)}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="is no LiFT"):
        load_lift(tmp_path / "model.pth")
