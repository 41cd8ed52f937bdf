"""Loading checkpoints into a detector, with detectron2's checkpointer and lift_det's."""

import logging
import pickle
import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.modeling import SimpleFeaturePyramid
from detectron2.modeling import ViT as UpstreamViT
from detectron2.modeling.meta_arch import GeneralizedRCNN as UpstreamRCNN
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
    model = instantiate(cfg)
    assert (type(model), type(model.backbone), type(model.backbone.net)) == (
        UpstreamRCNN,
        SimpleFeaturePyramid,
        UpstreamViT,
    )
    return model


@pytest.fixture(scope="module")
def vitdet_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vitdet") / "model_final.pth"
    torch.save({"model": _upstream().state_dict()}, path)
    return str(path)


def _save(tmp_path, state, name="model.pth"):
    torch.save({"model": state}, tmp_path / name)
    return str(tmp_path / name)


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
    with pytest.raises(CheckpointError, match=r"(?s)cls_score.weight: expected \(6, 32\)") as error:
        checkpointer(model).load(vitdet_file)
    assert "model.ignore_mismatch=[roi_heads]" in str(error.value)
    if checkpointer is Checkpointer:  # upstream drops tensors before the model sees their shape
        assert "got (81, 32)" in str(error.value)
    cfg.ignore_mismatch = ["roi_heads"]
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


@pytest.mark.parametrize(("name", "heuristics"), [("ls1.gamma", ""), ("gamma_1", "?matching_heuristics=True")])
def test_layer_scale_is_not_dropped(tmp_path, name, heuristics):
    model = instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py"))
    path = _save(tmp_path, {**_bare_vit(model), f"blocks.0.{name}": torch.ones(64)})
    with pytest.raises(CheckpointError, match=f"{name}.*TimmViT"):
        DetectionCheckpointer(model).load(path + heuristics)


@pytest.mark.parametrize(
    ("other", "message"),
    [(dict(embed_dim=32), r"norm1.weight: expected \(64,\), got \(32,\)"), (dict(depth=3), "blocks.2")],
)
def test_another_pretrained_vit(tmp_path, other, message):
    state = _bare_vit(instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py", **other)))
    # one tensor fits all the same, which detectron2 takes for a success
    state["blocks.0.attn.qkv.bias"] = torch.zeros(192)
    path = _save(tmp_path, state) + "?matching_heuristics=True"
    with pytest.raises(CheckpointError, match=message):
        DetectionCheckpointer(instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py"))).load(path)


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, Checkpointer])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_own_checkpoint(tmp_path, checkpointer, prefix, caplog):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    source = instantiate(cfg).state_dict()
    path = _save(tmp_path, {prefix + name: value for name, value in source.items()})
    model = instantiate(cfg)
    with caplog.at_level(logging.INFO):
        checkpointer(model).load(path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.items())
    assert "not in the checkpoint" not in caplog.text


def test_zoo_pickle_with_numpy_arrays(tmp_path, vitdet_file):
    state = {k: v.numpy() for k, v in torch.load(vitdet_file)["model"].items()}
    path = tmp_path / "model_final_61ccd1.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "ViTDet"}))
    for checkpointer in (DetectionCheckpointer, Checkpointer):
        model = instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py"))
        checkpointer(model).load(str(path))
        assert torch.equal(model.backbone.net.pos_embed, torch.from_numpy(state["backbone.net.pos_embed"]))


def test_other_residual_in_the_checkpoint(tmp_path):
    cfg = _config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    path = _save(tmp_path, instantiate(cfg).state_dict())
    cfg.backbone.lift.residual = False
    with pytest.raises(CheckpointError, match="residual=True.*residual=False"):
        DetectionCheckpointer(instantiate(cfg)).load(path)


def test_safetensors(tmp_path):
    model = instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py"))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = instantiate(_config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py"))
    Checkpointer(other).load(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
