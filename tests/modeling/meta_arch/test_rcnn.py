"""Loading checkpoints into a detector, with detectron2's checkpointer and lift_det's."""

import logging
import pickle
import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from safetensors.torch import save_file
from torch.testing import assert_close

from lift_det import LiFT, model_zoo
from lift_det.checkpoint import CheckpointError
from lift_det.engine import Checkpointer

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = dict(embed_dim=64, depth=2, num_heads=2, window_block_indexes=[0])


def _config(name: str, **net):
    """A shipped config with a small ViT and box head."""
    cfg = model_zoo.get_config(name).model
    cfg.backbone.net.update({**SMALL, **net})
    cfg.roi_heads.box_head.fc_dims = [32]
    cfg.roi_heads.box_predictor.input_shape.channels = 32
    return cfg


def _upstream():
    """detectron2's ViTDet."""
    from detectron2 import model_zoo as upstream_zoo

    cfg = upstream_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    cfg.backbone.net.update(SMALL)
    cfg.roi_heads.box_head.fc_dims = [32]
    cfg.roi_heads.box_predictor.input_shape.channels = 32
    return instantiate(cfg)


@pytest.fixture(scope="module")
def vitdet_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vitdet") / "model_final.pth"
    torch.save({"model": _upstream().state_dict()}, path)
    return str(path)


def _save(tmp_path, state):
    torch.save({"model": state}, tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


def test_baseline_is_vitdet(vitdet_file):
    torch.manual_seed(0)
    state = torch.load(vitdet_file)["model"]
    model = instantiate(_config("COCO/mask_rcnn_vitdet_b_100ep.py"))
    assert set(model.state_dict()) == set(state)
    model.mask_format = "bitmask"
    upstream = _upstream()
    upstream.load_state_dict(state)
    model.load_state_dict(state)
    batch = [{"image": torch.randint(0, 256, (3, 60, 100)).float(), "height": 60, "width": 100}]
    for m in (upstream, model):
        m.eval()
        # scores far from each other, so that rounding does not change their order
        m.roi_heads.box_predictor.cls_score.weight.data.mul_(50)
        # the scores of untrained heads are about 1/81
        m.roi_heads.box_predictor.test_score_thresh = 0.0
        m.backbone._square_pad = 128
    with torch.no_grad():
        expected, got = upstream(batch)[0]["instances"], model(batch)[0]["instances"]
    assert len(expected) > 0
    for field in ("pred_classes", "pred_masks"):
        assert torch.equal(expected.get(field), got.get(field))
    assert_close(got.scores, expected.scores, atol=1e-5, rtol=0)
    assert_close(got.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)


def test_vitdet_loads_into_fast(vitdet_file, caplog):
    model = instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py"))
    state = torch.load(vitdet_file)["model"]
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load(vitdet_file)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())
    new = set(loaded) - set(state)
    assert new == {f"backbone.lift.{k}" for k in LiFT(64, 16).state_dict()}
    assert re.search(r"backbone\.lift\.\* \(32 tensors\).*own initialisation", caplog.text)


def test_dense_from_vitdet(vitdet_file):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    with pytest.raises(CheckpointError, match=r"backbone.simfp_"):
        DetectionCheckpointer(instantiate(cfg)).load(vitdet_file)
    cfg.ignore_mismatch = ["backbone.simfp_"]
    model = instantiate(cfg)
    DetectionCheckpointer(model).load(vitdet_file)
    state = torch.load(vitdet_file)["model"]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items() if k.startswith("backbone.net."))


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, Checkpointer])
def test_other_classes(vitdet_file, checkpointer):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py")
    cfg.roi_heads.num_classes = 5
    model = instantiate(cfg)
    with pytest.raises(CheckpointError, match=r"(?s)cls_score.weight.*\(6, 32\)") as error:
        checkpointer(model).load(vitdet_file)
    assert "model.ignore_mismatch=[roi_heads]" in str(error.value)
    if checkpointer is Checkpointer:  # upstream drops tensors before the model sees their shape
        assert "(81, 32)" in str(error.value)
    for prefixes in (["roi_heads"], ["roi_heads.box_predictor", "roi_heads.mask_head.predictor"]):
        cfg.ignore_mismatch = prefixes
        model = instantiate(cfg)
        checkpointer(model).load(vitdet_file)
    state = torch.load(vitdet_file)["model"]
    assert torch.equal(model.roi_heads.box_head.fc1.weight, state["roi_heads.box_head.fc1.weight"])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (dict(embed_dim=32), "backbone.net"),
        (dict(depth=3), "backbone.net"),
        (dict(depth=1), "blocks.1."),
        (dict(img_size=512), "rel_pos_h"),
        (dict(patch_size=8, img_size=512), "patch_embed"),
    ],
)
@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, Checkpointer])
def test_another_vit(vitdet_file, other, expected, checkpointer):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py", **other)
    with pytest.raises(CheckpointError, match=f"(?s){expected}"):
        checkpointer(instantiate(cfg)).load(vitdet_file)


def _bare_vit(model):
    """The state dict of a pretrained ViT, without relative positions and the detector's prefix."""
    return {k: v for k, v in model.backbone.net.state_dict().items() if "rel_pos" not in k}


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, Checkpointer])
def test_bare_pretrained_vit(tmp_path, checkpointer, caplog):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    source = _bare_vit(instantiate(cfg))
    path = _save(tmp_path, {**source, "cls_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(2, 2)})
    model = instantiate(cfg)
    with caplog.at_level(logging.INFO):
        checkpointer(model).load(path + "?matching_heuristics=True")
    assert all(torch.equal(v, model.backbone.net.state_dict()[k]) for k, v in source.items())
    assert "cls_token, decoder_embed.weight" in caplog.text
    with pytest.raises(CheckpointError, match="matching_heuristics=True"):
        checkpointer(instantiate(cfg)).load(path)


@pytest.mark.parametrize(
    ("other", "added", "heuristics", "message"),
    [
        # one tensor fits all the same, which detectron2 takes for a success
        (dict(embed_dim=32), {"attn.qkv.bias": torch.zeros(192)}, True, r"norm1.weight: expected \(64,\), got \(32,\)"),
        (dict(depth=3), {}, True, "blocks.2"),
        ({}, {"ls1.gamma": torch.ones(64)}, False, "ls1.gamma.*TimmViT"),
        ({}, {"gamma_1": torch.ones(64)}, True, "gamma_1.*TimmViT"),
    ],
)
def test_another_pretrained_vit(tmp_path, other, added, heuristics, message):
    state = _bare_vit(instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py", **other)))
    path = _save(tmp_path, {**state, **{f"blocks.0.{name}": value for name, value in added.items()}})
    with pytest.raises(CheckpointError, match=message):
        model = instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py"))
        DetectionCheckpointer(model).load(path + ("?matching_heuristics=True" if heuristics else ""))


def test_another_lift(tmp_path):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    path = _save(tmp_path, instantiate(cfg).state_dict())
    cfg.backbone.lift.residual = False
    with pytest.raises(CheckpointError, match="residual=True.*residual=False"):
        DetectionCheckpointer(instantiate(cfg)).load(path)


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, Checkpointer])
@pytest.mark.parametrize("file", ["model.pth", "parallel.pth", "model_final_61ccd1.pkl", "model.safetensors"])
def test_whole_checkpoints(tmp_path, checkpointer, file, caplog):
    if file.endswith("safetensors") and checkpointer is DetectionCheckpointer:
        pytest.skip("detectron2 does not read this format")
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    source, path = instantiate(cfg).state_dict(), tmp_path / file
    if file.endswith("pkl"):  # as in detectron2's model zoo
        arrays = {name: value.numpy() for name, value in source.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "ViTDet"}))
    elif file.endswith("safetensors"):
        save_file(source, path)
    else:
        prefix = "module." if file == "parallel.pth" else ""
        torch.save({"model": {prefix + name: value for name, value in source.items()}}, path)
    model = instantiate(cfg)
    with caplog.at_level(logging.INFO):
        checkpointer(model).load(str(path))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.items())
    assert "not in the checkpoint" not in caplog.text
