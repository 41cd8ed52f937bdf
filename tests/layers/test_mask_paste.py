"""paste_masks and mask_to_rle, bit by bit against detectron2's paste and pycocotools' encode."""

from __future__ import annotations

import json
from pathlib import Path

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, PolygonMasks
from torch.nn import functional as F

from lift_det.layers import mask_to_rle, paste_masks
from tests.layers.mask_cases import (
    Case,
    expected_paste,
    expected_rles,
    random_cases,
    rounding_decides,
    smooth_masks,
)


def check(case: Case) -> int:
    """Returns the number of pixels in the masks."""
    expected, found = expected_paste(case), paste_masks(*case)
    assert found.dtype == torch.bool and torch.equal(found, expected)
    assert mask_to_rle(*case) == expected_rles(expected)
    return int(expected.sum())


def test_1000_random_masks() -> None:
    assert sum(check(case) for case in random_cases(1000)) > 100_000


def test_real_masks(shared: Path) -> None:
    """Annotated polygons as seen by a mask head: cropped to a shifted box at 28 × 28, and softened."""
    generator = torch.Generator().manual_seed(0)
    data = json.loads((shared / "datasets/coco/annotations/instances_val2017.json").read_text())
    number = 0
    for image in data["images"]:
        objects = [a for a in data["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        if objects:
            number += len(objects)
            boxes = torch.tensor([item["bbox"] for item in objects])
            boxes[:, 2:] += boxes[:, :2]
            boxes += (torch.rand(len(boxes), 4, generator=generator) - 0.5) * 10
            masks = PolygonMasks([item["segmentation"] for item in objects]).crop_and_resize(boxes, 28).float()
            soft = F.avg_pool2d(F.pad(masks[:, None], (1,) * 4, mode="replicate"), 3, 1)[:, 0]
            soft = ((soft - 0.5) * 8 + torch.randn(soft.shape, generator=generator) * 0.3).sigmoid()
            check(Case(soft, boxes, (image["height"], image["width"]), 0.5))
    assert number >= 500


def test_degenerate_boxes() -> None:
    boxes = torch.tensor(
        [
            [7.5, 7.5, 7.5, 7.5],  # no area, at a pixel centre
            [3.2, 4.3, 3.9, 4.8],  # less than a pixel
            [3.0, 4.0, 3.0 + 1e-6, 30.0],
            [9.0, 9.0, 8.0, 8.0],  # negative area
            [-40.0, -30.0, -5.0, -1.0],  # outside
            [60.0, 10.0, 90.0, 20.0],
            [10.0, 50.0, 20.0, 90.0],
            [49.0, 5.0, 55.0, 12.0],  # touching the image's side
            [0.0, 0.0, 49.0, 41.0],  # the whole image
            [10.0, 0.0, 20.0, 41.0],  # whole columns, where a run continues in the next one
            [-1e6, -1e6, 1e6, 1e6],
            [20.0, -1e7, 30.0, 1e7],
            [-float("inf"), 3.0, 20.0, 9.0],
        ]
    )
    smooth = smooth_masks(len(boxes), 28, 20, torch.Generator().manual_seed(0))
    for masks in (smooth, torch.ones_like(smooth), torch.full_like(smooth, 0.5)):
        for threshold in (0.0, 1e-9, 0.5):
            check(Case(masks, boxes, (41, 49), threshold))


def test_values_at_the_threshold() -> None:
    """Multiples of 1/4 on boxes of whole cells: exact samples equal the threshold, rounded ones may not."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (40, 14, 14), generator=generator) / 4
    corner = torch.randint(-20, 60, (40, 2), generator=generator)
    boxes = torch.cat([corner, corner + 14 * torch.randint(1, 6, (40, 2), generator=generator)], dim=1).float()
    for offset in (0.0, 0.5, 1 / 3):
        for threshold in (0.25, 0.5, 1.0):
            check(Case(masks, boxes + offset, (90, 81), threshold))


@pytest.mark.parametrize(
    ("mask_dtype", "box_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.uint8, torch.float64),
        (torch.bool, torch.float16),
    ],
)
def test_dtypes(mask_dtype: torch.dtype, box_dtype: torch.dtype) -> None:
    for case in random_cases(80, seed=1):
        masks = case.masks if mask_dtype.is_floating_point else case.masks > 0.5
        boxes = case.boxes.clamp(-1000, 1000).to(box_dtype)
        check(case._replace(masks=masks.to(mask_dtype), boxes=boxes))


def test_large_masks_and_boxes() -> None:
    """Values outside of 0 to 1; and more pixels than are encoded at once."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(12, 4, generator=generator) * 400
    boxes[:, 2:] += 400
    check(Case(torch.randn(12, 112, 112, generator=generator) * 100, boxes / 4, (203, 211), 3.0))
    check(Case(smooth_masks(12, 28, 20, generator), boxes, (799, 801), 0.5))


def test_negative_threshold_returns_values() -> None:
    for case in random_cases(100, seed=2):
        low, high = case.boxes[:, :2], case.boxes[:, 2:]
        inside = (high > low + 0.1) & (high > 0) & (low < torch.tensor(case.image_shape[::-1]))
        inside = inside.all(1) & (case.boxes.abs() < 1e4).all(1)
        arguments = (case.masks[inside], case.boxes[inside], case.image_shape, -1.0)
        expected, found = paste_masks_in_image(*arguments), paste_masks(*arguments)
        assert found.dtype == expected.dtype == torch.uint8 and torch.equal(found, expected)


def test_no_masks_and_detectron2s_boxes() -> None:
    masks, boxes, image_shape, _ = next(random_cases(16))
    expected, found = paste_masks_in_image(masks[:0], boxes[:0], (9, 7)), paste_masks(masks[:0], boxes[:0], (9, 7))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert mask_to_rle(masks[:0], boxes[:0], (9, 7)) == []
    pasted = paste_masks(masks.requires_grad_(), Boxes(boxes), image_shape)
    assert torch.equal(pasted, paste_masks(masks, boxes, image_shape)) and not pasted.requires_grad
    assert mask_to_rle(masks, Boxes(boxes), list(image_shape)) == mask_to_rle(masks, boxes, image_shape)


def test_rle_needs_no_image() -> None:
    """An image of 3e9 pixels has the same runs as a part of it."""
    masks = smooth_masks(1, 28, 20, torch.Generator().manual_seed(0))
    box = torch.tensor([[4000.0, 1000.0, 4210.0, 1333.0]])
    (large,) = mask_to_rle(masks, box, (60_000, 50_000))
    (small,) = mask_to_rle(masks, box - 1000 * torch.tensor([3, 0, 3, 0]), (60_000, 1500))
    assert large["size"] == [60_000, 50_000]
    assert mask_util.area(large) == mask_util.area(small) > 1000
    x, y, w, h = mask_util.toBbox(small)
    assert mask_util.toBbox(large).tolist() == [x + 3000, y, w, h]


@pytest.mark.parametrize("op", [paste_masks, mask_to_rle])
def test_invalid_arguments(op) -> None:
    masks, boxes = torch.rand(2, 28, 28), torch.rand(2, 4)
    with pytest.raises(ValueError, match="fast"):
        op(masks, boxes, (9, 7), implementation="fast")
    with pytest.raises(ValueError, match=r"\(2, 28, 27\)"):
        op(masks[..., 1:], boxes, (9, 7))
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        op(masks, boxes[:1], (9, 7))
    with pytest.raises(ValueError, match="meta"):
        op(masks, boxes.to("meta"), (9, 7))
    for threshold in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=str(threshold)):
            mask_to_rle(masks, boxes, (9, 7), threshold)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("implementation", ["torch", "triton", "auto"])
def test_cuda_agrees_with_detectron2_on_cuda(implementation: str) -> None:
    """Except for pixels within rounding of the threshold. Each RLE is that of the pasted mask."""
    pixels = different = 0
    for case in random_cases(1000):
        if rounding_decides(case):
            continue
        masks, boxes, *rest = case
        regular = (boxes[:, 2:] > boxes[:, :2]).all(1)
        arguments = (masks[regular].cuda(), boxes[regular].cuda(), *rest)
        found = paste_masks(*arguments, implementation)
        for rle, mask in zip(mask_to_rle(*arguments, implementation), found.cpu(), strict=True):
            different += int((torch.from_numpy(mask_util.decode(rle)).bool() != mask).sum())
        different += int((found != paste_masks_in_image(*arguments)).sum())
        pixels += int(found.sum())
    assert pixels > 100_000 and different <= 1e-4 * pixels
