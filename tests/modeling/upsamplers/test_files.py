"""Files of upsamplers of this and earlier versions."""

import json

import pytest
import safetensors.torch
import torch
from detectron2.config import LazyCall, instantiate
from torch import nn
from torch.testing import assert_close

from lift_det import LiFT, LiFTPlus, load_lift, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import FeatureSpec, FeatureUpsampler, build_upsampler, register_upsampler
from lift_det.modeling.upsamplers.base import UPSAMPLERS
from tests.modeling.deterministic import fill_deterministically

pytestmark = pytest.mark.usefixtures("one_thread")

BARE = dict(attention_kernel=0, standardize=False, preserve_norm=False)
KINDS = [
    (LiFT, {"norm": "LN"}),
    (LiFT, dict(residual=False, preserve_norm=True)),
    (LiFTPlus, {}),
    (LiFTPlus, BARE),
    (LiFTPlus, {**BARE, "network": "paper", "attention_kernel": 5}),
]
OLD_NAMES = {"preserve_norm": "keep_length", "standardize": "normalize", "attention_kernel": "pool"}


def _trained(kind, **options):
    lift = kind(16, 14, **options).eval()
    fill_deterministically(lift)
    return lift


def _inputs(patch_size=14, channels=16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 2 * patch_size, 3 * patch_size, generator=generator)
    return images, torch.randn(2, channels, 2, 3, generator=generator)


def _metadata_of(lift, form):
    """Metadata of the version before (other names), and of those before November 2026 (a key for each setting)."""
    settings = lift.settings()
    settings = {OLD_NAMES.get(name, name): value for name, value in settings.items()}
    flat = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    if form == "old names":
        return {**flat, "upsampler": lift.name, "settings": json.dumps(settings)}
    return {"network": "paper", "pool": "0", "normalize": "false", "residual": "true", **flat}


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("form", ["present", "old names", "flat"])
@pytest.mark.parametrize("file", ["lift.safetensors", "model.pth"])
def test_files_of_every_version(kind, options, form, file, tmp_path):
    lift = _trained(kind, **options)
    lift.use_features(FeatureSpec(layer=3))
    if file == "model.pth":  # a training's or a detector's checkpoint
        state = nn.ModuleDict({"backbone": nn.ModuleDict({"lift": lift, "net": nn.Linear(1, 1)})}).state_dict()
        if form != "present":
            state._metadata["backbone.lift"]["lift"] = {**_metadata_of(lift, form), "layer": "3"}
        torch.save({"model": state, "iteration": 9}, tmp_path / file)
    elif form == "present":
        save_lift(lift, tmp_path / file, {"layer": "3", "reconstruction": json.dumps({"2x": 1})})
    else:
        safetensors.torch.save_file(lift.state_dict(), tmp_path / file, {**_metadata_of(lift, form), "layer": "3"})
    assert [path.name for path in tmp_path.iterdir()] == [file]
    expected = lift(*_inputs())
    loaded = load_lift(tmp_path / file)
    assert (type(loaded), loaded.settings(), loaded.training) == (kind, lift.settings(), False)
    assert loaded.metadata["layer"] == "3" and loaded.trained_on.layer == 3
    built = kind(16, 14, **options, checkpoint=tmp_path / file).eval()
    for upsampler in (loaded, built):
        assert torch.equal(upsampler(*_inputs()), expected) and upsampler.trained


def test_authors_files(tmp_path):
    lift = LiFT(8, 16, residual=False)
    fill_deterministically(lift)
    path = tmp_path / "lift_dino_vits16.pth"
    torch.save({f"module.{k}": v for k, v in lift.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match="patch_size.*residual"):
        load_lift(path)
    for loaded in (load_lift(path, patch_size=16, residual=False), LiFT(8, 16, residual=False, checkpoint=path)):
        assert torch.equal(loaded.outc.weight, lift.outc.weight)
    with pytest.raises(CheckpointError, match="in_channels=12.*in_channels=8"):
        LiFT(12, 16, residual=False, checkpoint=path)


def test_preserve_norm_is_never_guessed(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(dict(LiFTPlus(16, 14).state_dict()), path)  # without torch's metadata
    with pytest.raises(CheckpointError, match="patch_size.*preserve_norm"):
        load_lift(path)
    assert load_lift(path, patch_size=14, preserve_norm=True).preserve_norm


def test_the_norm_may_differ_from_the_file(tmp_path):
    lift = _trained(LiFTPlus)
    save_lift(lift, tmp_path / "lift.safetensors")
    for frozen in (
        build_upsampler(checkpoint=tmp_path / "lift.safetensors", norm="FrozenBN"),
        LiFTPlus(16, 14, norm="FrozenBN", checkpoint=tmp_path / "lift.safetensors"),
    ):
        assert_close(frozen.eval()(*_inputs()), lift(*_inputs()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (dict(name="lift"), "name=lift.*name=lift_plus"),
        (dict(name="bilinear"), "name=bilinear.*name=lift_plus"),
        (dict(attention_kernel=5), "attention_kernel=5.*attention_kernel=3"),
        (dict(preserve_norm=False), "preserve_norm=False.*preserve_norm=True"),
        (dict(in_channels=8, patch_size=16), "(?s)in_channels=8.*in_channels=16.*patch_size=16.*patch_size=14"),
        (dict(residual=False), "residual=False.*residual=True"),
        (dict(blocks=3), "blocks=3.*lift_plus"),
    ],
)
def test_contradictions(stated, message, tmp_path):
    save_lift(_trained(LiFTPlus), tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match=message):
        build_upsampler(**stated, checkpoint=tmp_path / "lift.safetensors")
    with pytest.raises(CheckpointError, match="name=lift.*name=lift_plus"):
        LiFT(16, 14, checkpoint=tmp_path / "lift.safetensors")
    agreed = dict(name="lift_plus", in_channels=16, patch_size=14, residual=True, preserve_norm=None)
    build_upsampler(**agreed, checkpoint=tmp_path / "lift.safetensors")


def test_files_without_an_upsampler(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"model": {"backbone.net.w": torch.zeros(1), "roi_heads.w": torch.zeros(1)}}, tmp_path / "model.pth")
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", {"upsampler": "AnyUp"})
    save_lift(Widths(), tmp_path / "unregistered.safetensors")
    broken = {"upsampler": "lift", "settings": "{"}
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "b.safetensors", broken)
    for name, message in (
        ("other.pth", "conv.weight"),
        ("model.pth", "model.pth"),
        ("a.safetensors", "AnyUp"),
        ("b.safetensors", "settings"),
        ("unregistered.safetensors", "Widths"),
        ("missing.safetensors", "missing.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_lift(tmp_path / name)


class Widths(FeatureUpsampler):
    """Has settings of every JSON type, one of them named like a field of FeatureSpec, one like an old setting."""

    def __init__(self, widths=(1,), mode=None, layer=0, text="16", pool=1.0):
        super().__init__()
        self.arguments = dict(widths=widths, mode=mode, layer=layer, text=text, pool=pool)
        self.module = nn.ModuleDict({"outc": nn.Linear(2, 2)})
        self.outc = nn.Linear(2, 2)  # named like a part of LiFT

    def forward(self, images, features, output_size=None):
        return features

    def settings(self):
        return self.arguments


def test_settings_of_any_registered_class(tmp_path):
    register_upsampler("test_widths")(Widths)
    try:
        settings = dict(widths=[3, 4], mode=None, layer=2, text="16", pool=0.5)
        upsampler = instantiate(LazyCall(Widths)(**settings))  # with OmegaConf's lists
        save_lift(upsampler, tmp_path / "a.safetensors", {"layer": "11", "steps": "7"})
        loaded = load_lift(tmp_path / "a.safetensors")
    finally:
        del UPSAMPLERS["test_widths"]
    assert (type(loaded), loaded.settings(), loaded.trained_on.layer) == (Widths, settings, 11)
    assert torch.equal(loaded.module.outc.weight, upsampler.module.outc.weight)
    upsampler.use_features(FeatureSpec(layer=11))
    upsampler.load_state_dict(upsampler.state_dict())
