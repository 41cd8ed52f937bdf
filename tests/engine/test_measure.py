"""A config's figures, checked by hand on one so small that it can be counted."""

import pytest
import torch
from detectron2.config import LazyConfig
from torch import nn

from lift_det import FeatureExtractor, LiFT, LiFTFeaturePyramid, TimmViT, ViT, model_zoo
from lift_det.engine import measure_config
from lift_det.engine.measure import count_multiply_adds, describe_hardware

CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"

pytestmark = pytest.mark.usefixtures("one_thread")


def _vit(**others):
    return ViT(img_size=64, patch_size=8, embed_dim=32, depth=1, num_heads=2, pretrain_img_size=64, **others)


def test_measures_a_config(tmp_path):
    measured = measure_config(CONFIG)
    assert (measured.image_size, measured.seen_size, measured.strides) == (128, 128, [4, 8, 16, 32])
    assert measured.parameters == measured.trained > 1e6
    assert 0 < measured.seconds < 20 and measured.runs == 3
    assert measured.peak_memory > 1e8  # Python and torch take more than that
    assert measured.hardware == describe_hardware("cpu") and "1 threads, torch 2" in measured.hardware
    assert measured.pretrained == ""

    # half the image is a quarter of the work, but for the attention, which is less; a file is a config, too
    cfg = model_zoo.get_config(CONFIG)
    cfg.model.backbone.freeze_net = True
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    half = measure_config(str(tmp_path / "config.yaml"), image_size=64)
    assert half.gflops == pytest.approx(measured.gflops / 4, rel=0.15)
    assert half.parameters == measured.parameters > half.trained


def test_a_size_has_to_be_known(tmp_path):
    cfg = model_zoo.get_config(CONFIG)
    cfg.model.backbone.square_pad = 0
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    with pytest.raises(ValueError, match="say the images' size"):
        measure_config(str(tmp_path / "config.yaml"))


def test_another_backbone_is_refused(tmp_path):
    (tmp_path / "config.py").write_text(
        "from detectron2.config import LazyCall as L\nfrom torch import nn\nmodel = L(nn.Conv2d)(in_channels=1, "
        "out_channels=1, kernel_size=1)\n"
    )
    with pytest.raises(ValueError, match="LiFTFeaturePyramid"):
        measure_config(str(tmp_path / "config.py"))


@torch.no_grad()
def test_attention_is_counted():
    tokens, width = 8 * 8, 32
    layers = tokens * (12 * width**2 + width * 3 * 8**2)  # qkv, the projection, the MLP; the embedding
    scores = 2 * tokens**2 * width  # of all heads, and their product with the values
    norms = 5 * 2 * tokens * width  # fvcore's five for each number
    assert count_multiply_adds(FeatureExtractor(_vit().eval()), 64) == layers + scores + norms
    tables = tokens * width * (8 + 8)  # each query with the vectors of 8 rows and 8 columns
    with_tables = FeatureExtractor(_vit(use_rel_pos=True).eval())
    assert count_multiply_adds(with_tables, 64) == layers + scores + norms + tables
    timm = TimmViT("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, class_token=False, global_pool="avg")
    expected = 16 * (12 * width**2 + width * 3 * 16**2) + 2 * 16**2 * width
    assert count_multiply_adds(FeatureExtractor(timm.eval()), 64) == pytest.approx(expected, rel=0.02)


@torch.no_grad()
def test_lift_and_pyramid_are_counted():
    net, lift = _vit().eval(), LiFT(32, 8, norm="")
    plain = count_multiply_adds(LiFTFeaturePyramid(net, None, "last_feat", 16, (8,)).eval(), 64)
    level = 8 * 8 * (32 * 16 + 16 * 16 * 9)
    assert plain == pytest.approx(count_multiply_adds(FeatureExtractor(net), 64) + level, rel=0.05)
    lifted = LiFTFeaturePyramid(net, lift, "last_feat", 16, (8,), input_scale=0.5).eval()
    # the ViT sees half of 128, LiFT doubles, and the level is four times as large
    sizes, convolutions = [], 0
    hooks = [
        module.register_forward_hook(lambda m, _, out: sizes.append((m, out.shape)))
        for module in lift.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    lifted(torch.zeros(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()
    for module, shape in sizes:
        # a transposed convolution multiplies each input once with its whole kernel: a quarter of its outputs
        shrink = 4 if isinstance(module, nn.ConvTranspose2d) else 1
        convolutions += shape[2] * shape[3] * module.weight.numel() // shrink
    expected = count_multiply_adds(FeatureExtractor(net), 64) + convolutions + 4 * level
    assert count_multiply_adds(lifted, 64) == pytest.approx(expected, rel=0.05)
