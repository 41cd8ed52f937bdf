import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lift_det import LiFT
from lift_det.modeling.upsamplers import resize
from tests.modeling.deterministic import fill_deterministically, wave

pytestmark = pytest.mark.usefixtures("one_thread")

# Made by running the authors' own lift.py (github.com/saksham-s/lift, commit fd6d929, LiFT(8, patch, pre_shape=False,
# post_shape=False) in evaluation mode) on the weights and inputs of deterministic.py.
AUTHORS = json.loads((Path(__file__).parent / "authors_lift_outputs.json").read_text())


def bilinear_2x(features):
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def _inputs(patch_size: int, channels: int = 8, batch: int = 2, size: tuple[int, int] = (2, 3)):
    torch.manual_seed(0)
    h, w = size
    return torch.randn(batch, 3, h * patch_size, w * patch_size), torch.randn(batch, channels, h, w)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_authors_network(patch_size):
    expected = AUTHORS[str(patch_size)]
    lift = LiFT(8, patch_size, residual=False).eval()
    assert {k: list(v.shape) for k, v in lift.state_dict().items()} == expected["keys"]
    fill_deterministically(lift)
    with torch.no_grad():
        output = lift(wave((1, 3, 2 * patch_size, 3 * patch_size), 0.11), wave((1, 8, 2, 3), 0.53))
    assert_close(output, torch.tensor(expected["output"]).reshape(expected["shape"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (5, 2)])
@pytest.mark.parametrize("residual", [True, False])
def test_doubles_any_rectangle(patch_size, size, residual):
    images, features = _inputs(patch_size, size=size)
    assert LiFT(8, patch_size, residual).eval()(images, features).shape == (2, 8, 2 * size[0], 2 * size[1])


def test_residual_begins_as_bilinear_and_then_trains():
    images, features = _inputs(14)
    lift = LiFT(8, 14)
    assert torch.equal(lift(images, features), bilinear_2x(features))
    optimizer = torch.optim.SGD(lift.parameters(), lr=0.1)
    for _ in range(2):  # the last layer starts at zero, so the others get gradients from the second step on
        optimizer.zero_grad()
        lift(images, features).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lift.parameters() if p.dim() > 1)
    assert not torch.equal(lift(images, features), bilinear_2x(features))


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_each_step_resizes_the_image_to_its_map(patch_size):
    torch.manual_seed(0)
    lift = LiFT(8, patch_size, residual=False).eval()
    _, features = _inputs(patch_size)
    whole = torch.randn(2, 3, 8 * patch_size, 12 * patch_size)
    half, quarter = (resize(whole, (side * patch_size, side * patch_size * 3 // 2)) for side in (4, 2))
    once = lift(quarter, features)
    assert_close(lift(whole, features), once, atol=1e-6, rtol=0)
    assert_close(lift.upsample(whole, features, 2), lift(half, once), atol=1e-6, rtol=0)
    # the image is enlarged if needed, and the result resized
    twice = lift(F.interpolate(quarter, scale_factor=2, mode="bilinear"), once)
    assert_close(lift(quarter, features, (8, 12)), twice, atol=1e-6, rtol=0)
    assert_close(lift(quarter, features, (6, 11)), resize(twice, (6, 11)), atol=1e-6, rtol=0)
    assert torch.equal(lift.upsample(quarter, features, 0), features)
    assert lift(torch.randn(2, 3, 31, 50), features).shape == once.shape  # no whole number of patches


@pytest.mark.parametrize(
    ("images", "features", "message"),
    [
        ((1, 3, 32, 32), (1, 8, 2, 3), "2×3.*32×32"),
        ((1, 3, 1024, 1041), (1, 8, 64, 64), "1024×1041"),
        ((2, 3, 32, 48), (1, 8, 2, 3), "1 .* 2 "),
        ((1, 3, 32, 48), (1, 9, 2, 3), "8 .* 9"),
        ((1, 1, 32, 48), (1, 8, 2, 3), r"\(1, 1, 32, 48\)"),
        ((1, 3, 32, 48), (1, 6, 8), r"\(1, 6, 8\)"),
    ],
)
def test_wrong_shapes(images, features, message):
    with pytest.raises(ValueError, match=message):
        LiFT(8, 16)(torch.zeros(images), torch.zeros(features))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_agrees_with_cpu():
    images, features = _inputs(14, size=(7, 5))
    lift = LiFT(8, 14).eval()
    fill_deterministically(lift)
    with torch.no_grad():
        expected = lift(images, features)
        assert_close(lift.cuda()(images.cuda(), features.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)
