import pytest
import torch
import torch.nn.functional as F

from lift_det import LiFTPlus
from lift_det.modeling.upsamplers.lift_plus import AttentionPool, FeatureNorm

BARE = dict(attention_kernel=0, standardize=False, preserve_norm=False)

pytestmark = pytest.mark.usefixtures("one_thread")


def bilinear_2x(features):
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def _randomised(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module.eval()


@pytest.mark.parametrize("size", [3, 5])
def test_pool_is_a_softmax_over_neighbours(size):
    pool = _randomised(AttentionPool(6, size))
    features, hidden = torch.randn(2, 7, 4, 3), torch.randn(2, 6, 8, 6)
    with torch.no_grad():
        got = pool(features, hidden)
        logits = F.conv2d(hidden, pool.logits.weight, pool.logits.bias)
    reach = size // 2
    for y, x in [(0, 0), (3, 2), (4, 5), (7, 5)]:  # corners and the inside
        child = (y % 2) * 2 + x % 2
        weights = (logits[:, :, y, x] + pool.prior[child]).softmax(dim=1)
        expected = torch.zeros(2, 7)
        for k in range(size * size):
            row = min(max(y // 2 + k // size - reach, 0), 3)
            column = min(max(x // 2 + k % size - reach, 0), 2)
            expected += weights[:, k, None] * features[:, :, row, column]
        torch.testing.assert_close(got[:, :, y, x], expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch_size", [8, 14, 16])
@pytest.mark.parametrize("options", [BARE, {}, dict(preserve_norm=False), dict(network="paper", attention_kernel=5)])
def test_doubles_any_rectangle_and_learns_in_all_its_parts(patch_size, options):
    lift = _randomised(LiFTPlus(16, patch_size, **options))
    images = torch.randn(2, 3, 3 * patch_size, 5 * patch_size)
    lifted = lift(images, torch.randn(2, 16, 3, 5))
    assert lifted.shape == (2, 16, 6, 10)
    lifted.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in lift.parameters())
    if options is BARE:
        bare, features = LiFTPlus(16, patch_size, **BARE), torch.randn(2, 16, 3, 5)
        assert torch.equal(bare(images, features), bilinear_2x(features))


def test_pool_starts_near_bilinear():
    features = torch.randn(2, 5, 6, 8)
    with torch.no_grad():
        got = AttentionPool(4, 3)(features, torch.randn(2, 4, 12, 16))
    # each neighbour has a weight of 0.004 more than bilinear's
    expected = bilinear_2x(features)
    assert (got - expected).norm() / expected.norm() < 0.1


def test_preserve_norm_keeps_directions():
    free, kept = (_randomised(LiFTPlus(16, 16, standardize=False, preserve_norm=keep)) for keep in (False, True))
    images, features = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 4, 4) * 7
    with torch.no_grad():
        a, b = free(images, features), kept(images, features)
        torch.testing.assert_close(F.normalize(a, dim=1), F.normalize(b, dim=1))
        torch.testing.assert_close(b.norm(dim=1, keepdim=True), bilinear_2x(features.norm(dim=1, keepdim=True)))
        a, b = (lift.upsample(images, features, 2) for lift in (free, kept))
        torch.testing.assert_close(F.normalize(a, dim=1), F.normalize(b, dim=1))
        norms = F.interpolate(features.norm(dim=1, keepdim=True), scale_factor=4, mode="bilinear")
        torch.testing.assert_close(b.norm(dim=1, keepdim=True), norms)
        assert torch.equal(kept.upsample(images, features, 0), features)


def test_feature_norm_averages_the_first_calls():
    norm = FeatureNorm(3, calls=2).train()
    batches = [torch.randn(2, 3, 4, 5) * 3 + 1 for _ in range(3)]
    for batch in batches:
        norm(batch)
    first = torch.cat(batches[:2])
    torch.testing.assert_close(norm.mean, first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.deviation().flatten(), first.std(dim=(0, 2, 3), correction=0))
    got = norm(first)
    torch.testing.assert_close(got.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.std(dim=(0, 2, 3), correction=0), torch.ones(3))
    assert torch.equal(norm.eval()(first), got)


def test_standardized_features():
    """The network's output scales with each channel and does not depend on its mean or scale."""
    torch.manual_seed(0)
    scale, shift = torch.rand(16, 1, 1) * 10 + 0.1, torch.randn(16, 1, 1) * 5
    plain, scaled = (_randomised(LiFTPlus(16, 16, attention_kernel=0, preserve_norm=False)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), scaled.parameters(), strict=True))
    images, features = torch.randn(8, 3, 64, 64), torch.randn(8, 16, 4, 4)
    for lift, given in ((plain, features), (scaled, features * scale + shift)):
        lift.train().normalize(given)  # the statistics are this batch's
        lift.eval()
    with torch.no_grad():
        a = plain(images, features) - bilinear_2x(features)
        b = scaled(images, features * scale + shift) - bilinear_2x(features * scale + shift)
    torch.testing.assert_close(a * scale, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(network="unet"), "unet"),
        (dict(attention_kernel=4), "attention_kernel=4"),
        (dict(attention_kernel=1), "attention_kernel=1"),
        (dict(in_channels=6), " 4.* 6"),
        (dict(in_channels=7, network="paper"), " 2.* 7"),
        (dict(patch_size=12), " 12"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        LiFTPlus(**{"in_channels": 8, "patch_size": 16, **options})
