"""Upsamplers that implement only ``forward``, and modules of other projects, in every place of LiFT."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from lift_det import FeatureExtractor, LiFT, LiFTFeaturePyramid, LiFTPlus, ViT, model_zoo
from lift_det.cli import main
from lift_det.evaluation import ReconstructionEvaluator
from lift_det.export import FeaturesModule, export_program
from lift_det.modeling import ExternalUpsampler, LiFTPretraining
from tests.engine.tiny_detector import tiny_config, write_output_folder
from tests.upsampler_standins import AnyUpLike, LoftUpLike, Nearest

pytestmark = pytest.mark.usefixtures("one_thread")

UPSAMPLERS = {
    "own": LazyCall(Nearest)(),
    "anyup": LazyCall(ExternalUpsampler)(source=LazyCall(AnyUpLike)()),
    "loftup": LazyCall(ExternalUpsampler)(source=LazyCall(LoftUpLike)(), arguments=["features", "image"]),
}
every_upsampler = pytest.mark.parametrize("kind", list(UPSAMPLERS))


def _net() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, use_rel_pos=True).eval()


@every_upsampler
@pytest.mark.parametrize("options", [{}, {"input_scale": 0.25, "steps": 2}])
def test_pyramid(kind, options):
    upsampler = instantiate(UPSAMPLERS[kind])
    backbone = LiFTFeaturePyramid(_net(), upsampler, "last_feat", 8, **options).eval()
    x = torch.randn(1, 3, 128, 192)
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert [tuple(level.shape[-2:]) for level in backbone(x).values()] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    # it upsamples the ViT's map with the whole image
    bottom_up, features = backbone.forward_features(x)
    vit_map = bottom_up["last_feat"]
    size = [side * 2 ** options.get("steps", 1) for side in vit_map.shape[-2:]]
    torch.testing.assert_close(features, upsampler(x, vit_map, tuple(size)))


@every_upsampler
def test_reconstruction_beside_bilinear(kind, tmp_path):
    model = LiFTPretraining(_net(), instantiate(UPSAMPLERS[kind]), [120.0] * 3, [60.0] * 3).eval()
    evaluator = ReconstructionEvaluator(tmp_path)
    batch = [{"image": torch.randint(0, 256, (3, 64, 64))} for _ in range(2)]
    evaluator.process(batch, model(batch))
    cosine = evaluator.evaluate()["cosine_2x"]
    assert abs(cosine["lift"] - cosine["nearest"]) < 0.05  # the stand-ins are nearly nearest-neighbour
    assert (tmp_path / "lift.safetensors").exists()


@every_upsampler
def test_features_command(kind, tmp_path):
    cfg = tiny_config()
    cfg.model.backbone.lift = copy.deepcopy(UPSAMPLERS[kind])
    folder = write_output_folder(tmp_path / "trained", cfg)
    cv2.imwrite(str(tmp_path / "photo.png"), np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    arguments = [tmp_path / "photo.png", "--from", folder, "--size", "64", "--output", tmp_path / "out"]
    assert main(["features", *map(str, arguments), "--device", "cpu"]) == 0
    with np.load(tmp_path / "out" / "photo.npz") as maps:
        assert maps["lift"].shape == maps["bilinear"].shape == maps["true"].shape
        assert not np.allclose(maps["lift"], maps["bilinear"])


@pytest.mark.parametrize("kind", ["anyup", "loftup"])
def test_export_of_features(kind, tmp_path):
    statistics = dict(pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3)
    extractor = FeatureExtractor(_net(), instantiate(UPSAMPLERS[kind]), **statistics).eval()
    results = export_program(FeaturesModule(extractor), tmp_path / "features.pt2", [(64, 96)])
    assert len(results) == 3 and max(result.absolute for result in results) < 1e-4


@every_upsampler
def test_training_step_of_a_detector(kind):
    cfg = tiny_config()
    cfg.model.backbone.lift = copy.deepcopy(UPSAMPLERS[kind])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    square = torch.zeros(1, 64, 64, dtype=torch.bool)
    square[:, 8:48, 8:40] = True
    truth = {"gt_boxes": Boxes(torch.tensor([[8.0, 8, 40, 48]])), "gt_classes": torch.tensor([1])}
    truth = Instances((64, 64), **truth, gt_masks=BitMasks(square))
    with EventStorage():
        losses = model([{"image": torch.randint(0, 256, (3, 64, 64)), "instances": truth}])
    sum(losses.values()).backward()
    optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"backbone", "proposal_generator", "roi_heads"}
    assert all(name in changed for name in before if name.startswith("backbone.lift."))


@pytest.mark.parametrize("name", ["quick_schedules/mask_rcnn_lift_synthetic_cpu.py", "LiFT/lift_dinov2_vits14.py"])
def test_copies_pickles_and_dtypes(name):
    config = model_zoo.get_config(name).model
    if "net" in config:
        config.net.update(pretrained=False, depth=1)
    model = instantiate(config).eval()
    weights, backbone = model.state_dict(), model.backbone
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.state_dict(), weights, rtol=0, atol=0)
    size = backbone.size_divisibility * 4
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = next(iter(backbone(images).values()))
        for dtype, tolerance in ((torch.float64, 1e-3), (torch.float16, 0.2)):
            found = next(iter(copy.deepcopy(backbone).to(dtype)(images.to(dtype)).values()))
            assert found.dtype == dtype and (found.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", [LiFT, LiFTPlus])
def test_compiled_lift_at_one_size(kind):
    torch.manual_seed(0)
    lift = kind(16, 14).eval()
    for parameter in lift.parameters():
        nn.init.normal_(parameter, std=0.2)
    images, features = torch.randn(1, 3, 56, 84), torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        compiled = torch.compile(lift, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(images, features), lift(images, features), atol=1e-4, rtol=1e-4)
