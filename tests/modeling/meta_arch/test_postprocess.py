"""Masks in both formats against detectron2's post-processing and evaluator."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from detectron2.config import instantiate
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.meta_arch import GeneralizedRCNN as UpstreamRCNN
from detectron2.modeling.postprocessing import detector_postprocess as upstream_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn

from lift_det import model_zoo
from lift_det.modeling.meta_arch.postprocess import RLEList, detector_postprocess

pytestmark = pytest.mark.usefixtures("one_thread")


def raw_instances(number: int, masks: bool = True, keypoints: bool = False) -> Instances:
    """Predictions for an image of 60 × 90 pixels; some boxes reach out of it, some are empty."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(number, 4, generator=generator) * 60 - 10
    boxes[:, 2:] += boxes[:, :2] + 5
    boxes[1::4, 2] = boxes[1::4, 0]
    result = Instances((60, 90), pred_boxes=Boxes(boxes), scores=torch.rand(number, generator=generator))
    result.pred_classes = torch.arange(number)
    if masks:
        result.pred_masks = torch.rand(number, 1, 28, 28, generator=generator)
    if keypoints:
        result.pred_keypoints = torch.rand(number, 17, 3, generator=generator) * 50
    return result


def assert_same(found: Instances, expected: Instances, ignore: tuple[str, ...] = ()) -> None:
    assert found.image_size == expected.image_size and len(found) == len(expected)
    names = set(expected.get_fields()) - set(ignore)
    assert set(found.get_fields()) - {"pred_masks_rle"} == names
    for name in names:
        a, b = found.get(name), expected.get(name)
        a, b = (a.tensor, b.tensor) if isinstance(b, Boxes) else (a, b)
        assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("size", [(60, 90), (121, 95), (31, 44)])
@pytest.mark.parametrize("kind", ["masks", "ROIMasks", "keypoints", "boxes", "nothing"])
def test_both_formats(kind: str, size: tuple[int, int]) -> None:
    raw = raw_instances(0 if kind == "nothing" else 20, masks=kind != "boxes", keypoints=kind == "keypoints")
    if kind == "ROIMasks":
        raw.pred_masks = ROIMasks(raw.pred_masks[:, 0])
    expected = upstream_postprocess(copy.deepcopy(raw), *size, 0.4)
    assert len(expected) == 0 if kind == "nothing" else 0 < len(expected) < 20
    assert_same(detector_postprocess(copy.deepcopy(raw), *size, 0.4), expected)
    found = detector_postprocess(raw, *size, 0.4, mask_format="rle")
    assert_same(found, expected, ignore=("pred_masks",))
    assert found.has("pred_masks_rle") == (kind != "boxes")
    if kind != "boxes":
        assert found.pred_masks_rle == [item["segmentation"] for item in instances_to_coco_json(expected, 1)]
        assert json.loads(json.dumps(found.pred_masks_rle)) == found.pred_masks_rle


def test_rles_are_indexed() -> None:
    found = detector_postprocess(raw_instances(20), 60, 90, mask_format="rle")
    everything = list(found.pred_masks_rle)
    high = found.scores > 0.5
    assert 0 < int(high.sum()) < len(found)
    assert found[high].pred_masks_rle == [rle for rle, keep in zip(everything, high, strict=True) if keep]
    order = found.scores.argsort(descending=True)
    assert found[order].pred_masks_rle == [everything[i] for i in order]
    assert found[2].pred_masks_rle == everything[2:3] and found[1:4].pred_masks_rle == everything[1:4]
    assert isinstance(found[1:4].pred_masks_rle, RLEList) and found.pred_masks_rle[0] is everything[0]
    assert Instances.cat([found[:3], found[3:]]).pred_masks_rle == everything
    assert found.to("cpu").pred_masks_rle == everything
    with pytest.raises(IndexError, match="expected .* bools"):
        found.pred_masks_rle[torch.tensor([True])]


def small_model(mask_format: str) -> nn.Module:
    """A shipped config with a small ViT and heads; untrained, it detects everything."""
    torch.manual_seed(0)
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py").model
    cfg.backbone.net.update(embed_dim=64, depth=2, num_heads=2, window_block_indexes=[0])
    cfg.roi_heads.box_head.fc_dims = [32]
    cfg.roi_heads.box_predictor.input_shape.channels = 32
    cfg.mask_format = mask_format
    model = instantiate(cfg).eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    model.roi_heads.box_predictor.test_topk_per_image = 16
    model.backbone._square_pad = 128
    model.proposal_generator.post_nms_topk = {False: 30, True: 30}
    # masks that are not 0.5 all over
    nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=1.0)
    return model


@torch.no_grad()
def test_model_against_detectron2s_postprocessing() -> None:
    bitmask, rle = small_model("bitmask"), small_model("rle")
    generator = torch.Generator().manual_seed(1)
    batch = [
        {"image": torch.randint(0, 256, (3, 60, 100), generator=generator), "height": 93, "width": 151},
        {"image": torch.randint(0, 256, (3, 90, 70), generator=generator)},
    ]
    raw = bitmask.inference(batch, do_postprocess=False)
    images = bitmask.preprocess_image(batch)
    expected = UpstreamRCNN._postprocess(copy.deepcopy(raw), batch, images.image_sizes)
    found, found_rle = bitmask(batch), rle(batch)
    given = rle.inference(batch, detected_instances=copy.deepcopy(raw))
    for i, size in enumerate([(93, 151), (90, 70)]):
        one = expected[i]["instances"]
        assert one.image_size == size and len(one) > 8 and int(one.pred_masks.flatten(1).any(1).sum()) > 8
        assert_same(found[i]["instances"], one)
        assert_same(found_rle[i]["instances"], one, ignore=("pred_masks",))
        rles = found_rle[i]["instances"].pred_masks_rle
        assert rles == [item["segmentation"] for item in instances_to_coco_json(one, 1)]
        assert given[i]["instances"].pred_masks_rle == rles


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match="polygon"):
        small_model("polygon")
