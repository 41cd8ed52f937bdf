import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lift_det import BilinearUpsample, LiFT, load_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import save_lift
from lift_det.modeling.lift import bilinear_2x
from tests.modeling.deterministic import fill_deterministically, wave

# Made by running the authors' own lift.py (github.com/saksham-s/lift, commit fd6d929, LiFT(8, patch, pre_shape=False,
# post_shape=False) in evaluation mode) on the weights and inputs of deterministic.py.
AUTHORS = json.loads((Path(__file__).parent / "authors_lift_outputs.json").read_text())


def _inputs(patch_size: int, channels: int = 8, batch: int = 2, size: tuple[int, int] = (2, 3)):
    torch.manual_seed(0)
    h, w = size
    return torch.randn(batch, 3, h * patch_size, w * patch_size), torch.randn(batch, channels, h, w)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_plain_lift_is_the_authors(patch_size):
    expected = AUTHORS[str(patch_size)]
    lift = LiFT(8, patch_size, residual=False).eval()
    assert {k: list(v.shape) for k, v in lift.state_dict().items()} == expected["keys"]
    fill_deterministically(lift)
    with torch.no_grad():
        output = lift(wave((1, 3, 2 * patch_size, 3 * patch_size), 0.11), wave((1, 8, 2, 3), 0.53))
    assert_close(output, torch.tensor(expected["output"]).reshape(expected["shape"]), atol=1e-6, rtol=0)


def test_size_is_the_papers():
    parameters = sum(p.numel() for p in LiFT(384, 16, residual=False).parameters())
    assert parameters == 1_187_280


@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize("residual", [True, False])
def test_doubles_any_rectangle(patch_size, size, residual):
    images, features = _inputs(patch_size, size=size)
    assert LiFT(8, patch_size, residual).eval()(images, features).shape == (2, 8, 2 * size[0], 2 * size[1])


def test_residual_begins_as_bilinear_and_then_trains():
    images, features = _inputs(14)
    lift = LiFT(8, 14)
    assert torch.equal(lift(images, features), bilinear_2x(features))
    optimizer = torch.optim.SGD(lift.parameters(), lr=0.1)
    for _ in range(2):  # the last layer starts at zero: what is below it has gradients from the second step on
        optimizer.zero_grad()
        lift(images, features).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lift.parameters() if p.dim() > 1)
    assert not torch.equal(lift(images, features), bilinear_2x(features))


def test_patch_14_sees_the_image_as_patch_16_sees_it_enlarged():
    lift14, lift16 = LiFT(8, 14, residual=False).eval(), LiFT(8, 16, residual=False).eval()
    lift16.load_state_dict(lift14.state_dict())
    images, features = _inputs(14)
    enlarged = torch.nn.functional.interpolate(images, size=(32, 48), mode="bilinear", align_corners=False)
    assert_close(lift14(images, features), lift16(enlarged, features), atol=1e-6, rtol=0)


def test_recursion_enlarges_the_image_between_steps():
    torch.manual_seed(0)
    lift = LiFT(8, 8, residual=False).eval()
    images, features = _inputs(8)
    enlarged = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    by_hand = lift(enlarged, lift(images, features))
    assert_close(lift.upsample(images, features, 2), by_hand, atol=1e-6, rtol=0)
    assert torch.equal(lift.upsample(images, features, 0), features)
    # with the image at hand, the second step looks at the real thing
    original = torch.randn(2, 3, 32, 48)
    assert_close(
        lift.upsample(images, features, 2, original), lift(original, lift(images, features)), atol=1e-6, rtol=0
    )


def test_bilinear_has_lifts_interface():
    images, features = _inputs(14)
    upsampler = BilinearUpsample()
    assert torch.equal(upsampler(images, features), bilinear_2x(features))
    assert upsampler.upsample(images, features, 2).shape == (2, 8, 8, 12)
    assert not list(upsampler.parameters())


@pytest.mark.parametrize(
    ("images", "features", "message"),
    [
        ((1, 3, 32, 32), (1, 8, 2, 3), "2×3 belong to 1 images of 32×48"),
        ((1, 3, 33, 48), (1, 8, 2, 3), "got 1 of 33×48"),
        ((2, 3, 32, 48), (1, 8, 2, 3), "got 2 of 32×48"),
        ((1, 3, 32, 48), (1, 9, 2, 3), "for 8 channels; the features have 9"),
        ((1, 1, 32, 48), (1, 8, 2, 3), "takes images"),
        ((1, 3, 32, 48), (1, 6, 8), "takes images"),
    ],
)
def test_wrong_shapes_are_named(images, features, message):
    with pytest.raises(ValueError, match=message):
        LiFT(8, 16)(torch.zeros(images), torch.zeros(features))


def test_unknown_patch_size_and_odd_width():
    with pytest.raises(ValueError, match=r"\(8, 14, 16, 32\), not 12"):
        LiFT(8, 12)
    with pytest.raises(ValueError, match="multiple of 2, got 7"):
        LiFT(7, 16)


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
    with pytest.raises(CheckpointError, match=r"'patch_size': '14'.*'patch_size': '16'"):
        LiFT(8, 16, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"'in_channels': '8'.*'in_channels': '12'"):
        LiFT(12, 14, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"'residual': 'true'.*'residual': 'false'"):
        LiFT(8, 14, residual=False, checkpoint=path)
    torch.save(dict(LiFT(8, 16).state_dict()), tmp_path / "bare.pth")  # says nothing about itself: its shapes must do
    with pytest.raises(CheckpointError, match="of another shape"):
        LiFT(12, 16, checkpoint=tmp_path / "bare.pth")


def test_not_a_lift(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is no LiFT"):
        load_lift(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load_lift(tmp_path / "missing.safetensors")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_agrees_with_cpu():
    images, features = _inputs(14, size=(7, 5))
    lift = LiFT(8, 14).eval()
    fill_deterministically(lift)
    with torch.no_grad():
        expected = lift(images, features)
        assert_close(lift.cuda()(images.cuda(), features.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)
