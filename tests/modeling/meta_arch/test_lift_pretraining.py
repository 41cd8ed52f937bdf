import pytest
import torch
import torch.nn.functional as F

from lift_det import LiFT, LiFTPlus, ViT
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import LazyUpsampler, LiFTPretraining
from lift_det.modeling.upsamplers import resize

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _net(depth=2):
    return ViT(img_size=64, patch_size=8, embed_dim=32, depth=depth, num_heads=2, pretrain_img_size=64)


def _model(kind=LiFT, **options):
    torch.manual_seed(0)
    return LiFTPretraining(_net(), kind(32, 8), MEAN, STD, **options)


def _batch(size=(64, 96), seed=1):
    generator = torch.Generator().manual_seed(seed)
    # smooth, so that LiFT can learn from few steps
    coarse = torch.rand(4, 3, size[0] // 8, size[1] // 8, generator=generator) * 255
    images = F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255).byte()
    return [{"image": image} for image in images]


def _untrained(model):
    """Makes the LiFT differ from bilinear upsampling; its last layer starts at zero."""
    torch.nn.init.normal_(model.lift.outc.weight, std=0.1)
    return model


@pytest.mark.parametrize("kind", [LiFT, LiFTPlus])
def test_learns_without_changing_the_vit(kind):
    model, batch = _model(kind), _batch()
    before = {k: v.clone() for k, v in model.backbone.net.state_dict().items()}
    model.train()
    assert not model.backbone.net.training and model.lift.training
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    first = None
    for _ in range(20):
        losses = model(batch)
        assert set(losses) == {"loss_full_from_half", "loss_half_from_quarter"}
        total = sum(losses.values())
        first = first if first is not None else total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() < 0.9 * first
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.net.state_dict().items())
    model.eval()
    with torch.no_grad():
        scores = model(batch)
    assert sum(s["cosine_2x"]["lift"] for s in scores) > sum(s["cosine_2x"]["bilinear"] for s in scores)
    assert model.steps == 20
    assert {".".join(name.split(".")[:2]) for name in model.state_dict()} == {"backbone.net", "backbone.lift", "steps"}


def test_losses():
    batch = _batch()
    model = _untrained(
        _model(
            objectives=dict(full_from_half=1.0, half_from_quarter=0.5, full_from_quarter=2.0),
            losses=dict(cosine=1.0, l1=0.25, l2=3.0, relative_l2=0.5),
        )
    ).train()
    # BatchNorm in evaluation, so that the order of the computation does not matter
    model.lift.eval()
    losses = {name: value.item() for name, value in model(batch).items()}

    images = (torch.stack([item["image"] for item in batch]) - model.pixel_mean) / model.pixel_std
    half, quarter = resize(images, (32, 48)), resize(images, (16, 24))
    net, lift = model.backbone.net, model.lift
    full_f, half_f, quarter_f = (net(x)["last_feat"] for x in (images, half, quarter))
    twice = lift.upsample(quarter, quarter_f, 2)  # the paper's recursion
    pairs = {
        "full_from_half": (1.0, lift(half, half_f), full_f),
        "half_from_quarter": (0.5, lift(quarter, quarter_f), half_f),
        "full_from_quarter": (2.0, twice, full_f),
    }
    expected = {}
    for name, (weight, got, true) in pairs.items():
        expected[f"loss_{name}_cosine"] = weight * (1 - F.cosine_similarity(got, true, dim=1).mean())
        expected[f"loss_{name}_l1"] = weight * 0.25 * (got - true).abs().mean()
        expected[f"loss_{name}_l2"] = weight * 3.0 * (got - true).square().mean()
        expected[f"loss_{name}_relative_l2"] = weight * 0.5 * (got - true).square().sum() / true.square().sum()
    assert losses == {name: pytest.approx(value.item(), rel=1e-4) for name, value in expected.items()}


def test_scores():
    batch = _batch()
    model = _untrained(_model()).eval()
    with torch.no_grad():
        scores = model(batch)
        images = (torch.stack([item["image"] for item in batch]) - model.pixel_mean) / model.pixel_std
        half, quarter = resize(images, (32, 48)), resize(images, (16, 24))
        full_f, half_f, quarter_f = (model.backbone.net(x)["last_feat"] for x in (images, half, quarter))
        nearest = half_f.repeat_interleave(2, 2).repeat_interleave(2, 3)
        once = model.lift(quarter, quarter_f)
        expected = {
            ("2x", "nearest"): (nearest, full_f),
            ("2x", "bilinear"): (F.interpolate(half_f, size=(8, 12), mode="bilinear"), full_f),
            ("2x", "lift"): (model.lift(half, half_f), full_f),
            ("2x_half", "lift"): (once, half_f),
            # four times bilinear, at once
            ("4x", "bilinear"): (F.interpolate(quarter_f, size=(8, 12), mode="bilinear"), full_f),
            ("4x", "bicubic"): (F.interpolate(quarter_f, size=(8, 12), mode="bicubic"), full_f),
            ("4x", "lift"): (model.lift(resize(quarter, (32, 48)), once), full_f),
            ("4x", "lift_original"): (model.lift(half, once), full_f),
        }
    for (task, method), (got, true) in expected.items():
        for i, score in enumerate(scores):
            cosine = F.cosine_similarity(got[i], true[i], dim=0).mean().item()
            error = ((got[i] - true[i]).square().sum() / true[i].square().sum()).sqrt().item()
            assert score[f"cosine_{task}"][method] == pytest.approx(cosine, abs=1e-5)
            assert score[f"rel_l2_{task}"][method] == pytest.approx(error, rel=1e-4)
    assert set(scores[0]["cosine_2x"]) == {"nearest", "bilinear", "bicubic", "lift"}


def test_lazy_upsamplers_and_trained_lifts(tmp_path):
    trained = _untrained(_model()).eval()
    with torch.no_grad():
        trained(_batch()).save_lift(tmp_path / "lift.safetensors", {})
    for name, kind in ((None, LiFTPlus), ("lift", LiFT)):
        assert type(LiFTPretraining(_net(), LazyUpsampler(name), MEAN, STD).lift) is kind
    model = LiFTPretraining(_net(), LazyUpsampler(checkpoint=tmp_path / "lift.safetensors"), MEAN, STD)
    assert type(model.lift) is LiFT and model.steps == 0
    assert all(torch.equal(value, trained.lift.state_dict()[name]) for name, value in model.lift.state_dict().items())
    with pytest.raises(CheckpointError, match="'1'.*'0'"):
        LiFTPretraining(_net(), LazyUpsampler(checkpoint=tmp_path / "lift.safetensors"), MEAN, STD, layer=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(losses=dict(huber=1.0)), "huber"),
        (dict(objectives=dict(full_from_half=0.0)), "full_from_half"),
        (dict(autocast="int8"), "int8"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        _model(**options)
    with pytest.raises(ValueError, match="pixel_mean"):
        LiFTPretraining(_net(depth=1), LiFT(32, 8))
    with pytest.raises(ValueError, match="64×80.* 32 "):
        _model()(_batch((64, 80)))


def _evaluate(model, batch):
    """Scores, and the sizes of the batches that went through the ViT."""
    sizes = []
    model.eval().backbone.extract = lambda images: (
        sizes.append(len(images)) or type(model.backbone).extract(model.backbone, images)
    )
    with torch.no_grad():
        return [score["cosine_2x"] for score in model(batch)], sizes


def test_feature_cache(tmp_path, caplog):
    batch = _batch()
    expected, _ = _evaluate(_untrained(_model()), batch)
    model = _untrained(_model(feature_cache=tmp_path))
    first, sizes = _evaluate(model, batch)
    assert sizes == [4, 4, 4]  # full, half and quarter size
    reversed_, sizes = _evaluate(model, batch[::-1])
    assert sizes == []
    mixed, sizes = _evaluate(model, [*batch[:3], *_batch(seed=2)[:1]])
    assert sizes == [4, 4, 4]  # the whole batch, so that rounding is the same
    broken = next(tmp_path.rglob("*.safetensors"))
    broken.write_bytes(b"broken")
    again, sizes = _evaluate(model, batch)
    assert sizes == [4, 4, 4] and str(broken) in caplog.text
    for scores in (first, reversed_[::-1], mixed[:3], again):
        for a, b in zip(scores, expected, strict=False):
            assert a == pytest.approx(b, abs=2e-3)  # half precision


def test_feature_cache_depends_on_weights_and_layer(tmp_path):
    def extractions(change=False, **options):
        model = _model(feature_cache=tmp_path, **options)
        if change:
            model.backbone.net.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
        return len(_evaluate(model, _batch())[1])

    assert [extractions(), extractions(), extractions(layer=0), extractions(change=True)] == [3, 0, 3, 3]


def test_feature_cache_on_a_full_disk(tmp_path, caplog, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lift_det.modeling.meta_arch.feature_cache.write_atomically", full)
    model = _model(feature_cache=tmp_path).train()
    losses = [model(_batch())["loss_full_from_half"].item() for _ in range(2)]
    assert losses[0] > 0 and caplog.text.count("No space left") == 1
    assert not list(tmp_path.rglob("*.safetensors"))
