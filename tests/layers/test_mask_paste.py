"""paste_masks and mask_to_rle against detectron2 and pycocotools: bit by bit and byte by byte on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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

CPU_IMPLEMENTATIONS = ("reference", "boxes")


def check(case: Case) -> None:
    pasted = expected_paste(case)
    rles = expected_rles(pasted)
    for implementation in CPU_IMPLEMENTATIONS:
        found = paste_masks(*case, implementation)
        assert found.dtype == torch.bool and torch.equal(found, pasted), implementation
        assert mask_to_rle(*case, implementation) == rles, implementation
    assert mask_to_rle(*case) == rles


def test_1000_random_masks() -> None:
    bits = runs = 0
    for case in random_cases(1000):
        check(case)
        bits += int(paste_masks(*case).sum())
        runs += sum(len(rle["counts"]) for rle in mask_to_rle(*case))
    assert bits > 100_000 and runs > 50_000  # the cases have something to find


def real_masks(coco: Path, number: int) -> list[Case]:
    """Annotated objects seen by a mask head: their polygons cropped to a box a little off, at 28 × 28, softened."""
    generator = torch.Generator().manual_seed(0)
    cases, left = [], number
    for split in ("val2017", "train2017"):
        data = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        for image in data["images"]:
            objects = [a for a in data["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]][:left]
            if not objects:
                continue
            left -= len(objects)
            boxes = torch.tensor([item["bbox"] for item in objects])
            boxes[:, 2:] += boxes[:, :2]
            boxes += (
                (torch.rand(len(boxes), 4, generator=generator) - 0.5) * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) / 8
            )
            masks = PolygonMasks([item["segmentation"] for item in objects]).crop_and_resize(boxes, 28).float()
            soft = F.avg_pool2d(F.pad(masks[:, None], (1,) * 4, mode="replicate"), 3, 1)[:, 0]
            soft = ((soft - 0.5) * 8 + torch.randn(soft.shape, generator=generator) * 0.3).sigmoid()
            cases.append(Case(soft, boxes, (image["height"], image["width"]), 0.5))
    assert left == 0
    return cases


def test_500_real_masks(shared: Path) -> None:
    for case in real_masks(shared / "datasets" / "coco", 500):
        pasted = expected_paste(case)
        assert torch.equal(paste_masks(*case), pasted)
        assert mask_to_rle(*case) == expected_rles(pasted)


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5.0, 5.0, 20.0],  # no width
        [5.0, 5.0, 20.0, 5.0],
        [7.5, 7.5, 7.5, 7.5],  # nothing, at a pixel's centre
        [3.0, 4.0, 4.0, 5.0],  # one pixel
        [3.2, 4.3, 3.9, 4.8],  # less
        [3.0, 4.0, 3.0 + 1e-6, 30.0],
        [9.0, 9.0, 8.0, 8.0],  # the wrong way round
        [-40.0, -30.0, -5.0, -1.0],  # outside, each side
        [60.0, 10.0, 90.0, 20.0],
        [10.0, 50.0, 20.0, 90.0],
        [-20.0, 10.0, 0.0, 20.0],
        [49.0, 5.0, 55.0, 12.0],  # its edge on the image's
        [-9.0, -8.0, 70.0, 60.0],
        [0.0, 0.0, 49.0, 41.0],  # the image
        [10.0, 0.0, 20.0, 41.0],  # whole columns: runs go on in the next
        [-1e6, -1e6, 1e6, 1e6],
        [20.0, -1e7, 30.0, 1e7],
        [-float("inf"), 3.0, 20.0, 9.0],
    ],
)
@pytest.mark.parametrize("value", [0.5, 1.0, None])
def test_degenerate_boxes(box: list[float], value: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = smooth_masks(1, 28, 20, generator) if value is None else torch.full((1, 28, 28), value)
    for threshold in (0.0, 1e-9, 0.5):
        check(Case(masks, torch.tensor([box]), (41, 49), threshold))


def test_values_that_meet_the_threshold() -> None:
    """Multiples of 1/4 on boxes of whole cells: samples that are the threshold, or would be without rounding."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (40, 14, 14), generator=generator) / 4
    corner = torch.randint(-20, 60, (40, 2), generator=generator)
    boxes = torch.cat([corner, corner + 14 * torch.randint(1, 6, (40, 2), generator=generator)], dim=1).float()
    for offset in (0.0, 0.5, 1 / 3):
        for threshold in (0.25, 0.5, 1.0):
            check(Case(masks, boxes + offset, (90, 81), threshold))


@pytest.mark.parametrize("mask_dtype", [torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool])
@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64, torch.float16])
def test_dtypes(mask_dtype: torch.dtype, box_dtype: torch.dtype) -> None:
    for case in list(random_cases(80, seed=1)):
        masks = case.masks if mask_dtype.is_floating_point else case.masks > 0.5
        boxes = case.boxes.clamp(-1000, 1000).to(box_dtype)
        check(case._replace(masks=masks.to(mask_dtype), boxes=boxes))


def test_values_outside_of_0_to_1_and_large_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(6, 112, 112, generator=generator) * 100
    boxes = torch.rand(6, 4, generator=generator) * 100
    boxes[:, 2:] += boxes[:, :2] + 20
    check(Case(masks, boxes, (203, 211), 3.0))


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_negative_threshold_gives_values(implementation: str) -> None:
    for case in random_cases(100, seed=2):
        inside = (case.boxes[:, 2:] > case.boxes[:, :2] + 0.1).all(1) & (case.boxes.abs() < 1e4).all(1)
        inside &= (case.boxes[:, 2:] > 0).all(1)
        inside &= (case.boxes[:, 0] < case.image_shape[1]) & (case.boxes[:, 1] < case.image_shape[0])
        arguments = (case.masks[inside], case.boxes[inside], case.image_shape, -1.0)
        expected = paste_masks_in_image(*arguments)
        found = paste_masks(*arguments, implementation)
        assert found.dtype == expected.dtype == torch.uint8 and torch.equal(found, expected)


@pytest.mark.parametrize("implementation", [*CPU_IMPLEMENTATIONS, "auto"])
def test_no_masks(implementation: str) -> None:
    masks, boxes = torch.rand(0, 28, 28), torch.rand(0, 4)
    expected, found = paste_masks_in_image(masks, boxes, (9, 7)), paste_masks(masks, boxes, (9, 7), 0.5, implementation)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert mask_to_rle(masks, boxes, (9, 7), 0.5, implementation) == []


def test_boxes_objects_and_gradients() -> None:
    case = next(random_cases(16))
    masks = case.masks.requires_grad_()
    assert torch.equal(paste_masks(masks, Boxes(case.boxes), case.image_shape), paste_masks(masks, *case[1:3]))
    assert mask_to_rle(masks, Boxes(case.boxes), list(case.image_shape)) == mask_to_rle(masks, *case[1:3])
    assert not paste_masks(masks, *case[1:3]).requires_grad


def test_more_masks_than_are_encoded_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(12, 4, generator=generator) * 400
    boxes[:, 2:] += 400
    case = Case(smooth_masks(12, 28, 20, generator), boxes, (799, 801), 0.5)
    assert mask_to_rle(*case) == expected_rles(expected_paste(case))


def test_rle_needs_no_image() -> None:
    """An image of 3e9 pixels, more than an int32 counts: the same runs as at the same place in a small one."""
    generator = torch.Generator().manual_seed(0)
    masks, box = smooth_masks(1, 28, 20, generator), torch.tensor([[4000.0, 1000.0, 4210.0, 1333.0]])
    (large,) = mask_to_rle(masks, box, (60_000, 50_000))
    (small,) = mask_to_rle(masks, box - 1000 * torch.tensor([3, 0, 3, 0]), (60_000, 1500))
    assert large["size"] == [60_000, 50_000]
    assert mask_util.area(large) == mask_util.area(small) > 1000
    x, y, w, h = mask_util.toBbox(small)
    np.testing.assert_array_equal(mask_util.toBbox(large), [x + 3000, y, w, h])


def test_unmet_conditions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, boxes = torch.rand(2, 28, 28), torch.rand(2, 4)
    for call in (paste_masks, mask_to_rle):
        with pytest.raises(ValueError, match="'fast'; it can be one of auto, reference, boxes, triton"):
            call(masks, boxes, (9, 7), implementation="fast")
        with pytest.raises(ValueError, match=r"expected \(N, M, M\), got \(2, 28, 27\)"):
            call(masks[..., 1:], boxes, (9, 7))
        with pytest.raises(ValueError, match=r"expected \(2, 4\).*got \(1, 4\)"):
            call(masks, boxes[:1], (9, 7))
        with pytest.raises(ValueError, match="one device"):
            call(masks, SimpleNamespace(tensor=boxes.to("meta")), (9, 7))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "triton", None)
            with pytest.raises(RuntimeError, match="needs the package triton"):
                call(masks, boxes, (9, 7), implementation="triton")
    for threshold in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold of 0 or more"):
            mask_to_rle(masks, boxes, (9, 7), threshold)


def test_triton_is_not_imported_on_the_cpu() -> None:
    source = (
        "import sys, torch\n"
        "from lift_det.layers import mask_to_rle, paste_masks\n"
        "arguments = torch.rand(3, 28, 28), torch.tensor([[1., 2, 30, 40]] * 3), (50, 60)\n"
        "assert paste_masks(*arguments).any() and len(mask_to_rle(*arguments)) == 3\n"
        "assert 'lift_det.layers.mask_paste.triton' not in sys.modules\n"
    )
    for block in ("", "import sys; sys.modules['triton'] = None\n"):
        subprocess.run([sys.executable, "-c", block + source], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("implementation", ["boxes", "triton", "auto"])
def test_cuda_agrees_with_detectron2_on_cuda(implementation: str) -> None:
    """But for pixels within rounding of the threshold, and each RLE is that of what is pasted."""
    pixels = different = 0
    for case in random_cases(1000):
        if rounding_decides(case):
            continue
        masks, boxes, *rest = case
        regular = (boxes[:, 2:] > boxes[:, :2]).all(1)
        arguments = (masks[regular].cuda(), boxes[regular].cuda(), *rest)
        expected = paste_masks_in_image(*arguments)
        found = paste_masks(*arguments, implementation)
        rles = mask_to_rle(*arguments, implementation)
        decoded = [torch.from_numpy(mask_util.decode(rle)).bool() for rle in rles]
        assert all(rle["size"] == list(case.image_shape) for rle in rles)
        for mask, other in zip(decoded, found.cpu(), strict=True):
            different += int((mask != other).sum())
        different += int((found != expected).sum())
        pixels += found.sum()
    assert pixels > 100_000 and different <= 1e-4 * pixels
