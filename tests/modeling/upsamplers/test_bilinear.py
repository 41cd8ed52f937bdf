import torch
import torch.nn.functional as F

from lift_det import BilinearUpsample


def test_it_is_torchs_interpolation_to_any_size():
    images, features = torch.randn(2, 3, 28, 42), torch.randn(2, 8, 2, 3)
    upsampler = BilinearUpsample()
    doubled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(upsampler(images, features), doubled)
    for size in ((8, 12), (5, 7)):
        expected = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        assert torch.equal(upsampler(images, features, size), expected)
    assert torch.equal(upsampler.upsample(images, features, 2), upsampler(images, features, (8, 12)))
    assert not list(upsampler.parameters())


def test_making_smaller_averages():
    checkerboard = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8)[None, None]
    reduced = BilinearUpsample()(torch.zeros(1, 3, 16, 16), checkerboard, (4, 4))
    assert (reduced - 0.5).abs().max() < 0.05
