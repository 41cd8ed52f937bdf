import pytest
import torch

from lift_det import LiFT, ViT
from lift_det.checkpoint import CheckpointError
from lift_det.engine import LiFTPretraining
from lift_det.evaluation import ReconstructionEvaluator

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _model(**lift):
    torch.manual_seed(0)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=1, num_heads=2, pretrain_img_size=64)
    return LiFTPretraining(net, LiFT(32, 8, **lift), MEAN, STD)


def _batch(size=(64, 96)):
    torch.manual_seed(1)
    # smooth enough that a larger image says something about a smaller one
    coarse = torch.rand(4, 3, size[0] // 8, size[1] // 8) * 255
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255)
    return [{"image": image} for image in images]


def test_learns_to_be_better_than_bilinear_without_touching_the_vit():
    model, batch = _model(), _batch()
    before = {k: v.clone() for k, v in model.backbone["net"].state_dict().items()}
    model.train()
    assert not model.backbone["net"].training and model.backbone["lift"].training
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    first = None
    for _ in range(30):
        losses = model(batch)
        assert set(losses) == {"loss_full_from_half", "loss_half_from_quarter"}
        total = sum(losses.values())
        first = first if first is not None else total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() < 0.9 * first
    assert all(torch.equal(v, before[k]) for k, v in model.backbone["net"].state_dict().items())
    model.eval()
    with torch.no_grad():
        scores = model(batch)
    assert sum(s["lift"] for s in scores) > sum(s["bilinear"] for s in scores)


def test_untrained_residual_lift_scores_as_bilinear():
    model = _model().eval()
    with torch.no_grad():
        for score in model(_batch()):
            assert score["lift"] == pytest.approx(score["bilinear"], abs=1e-6)


def test_images_that_cannot_be_quartered():
    with pytest.raises(ValueError, match="64×80.*multiples of 32"):
        _model()(_batch((64, 80)))


def test_a_vit_that_fits_in_part_is_refused():
    model = _model()
    state = {k: v for k, v in model.state_dict().items() if "blocks.0.mlp" not in k}
    with pytest.raises(CheckpointError, match="only in part"):
        model.load_state_dict(state, strict=False)


def test_evaluator_averages_over_images():
    evaluator = ReconstructionEvaluator()
    evaluator.reset()
    evaluator.process([{}, {}], [{"lift": 0.5, "bilinear": 0.25}, {"lift": 1.0, "bilinear": 0.5}])
    evaluator.process([{}], [{"lift": 0.0, "bilinear": 0.75}])
    assert evaluator.evaluate() == {"cosine_2x": {"lift": pytest.approx(0.5), "bilinear": pytest.approx(0.5)}}
