"""The benchmarks: both sides compute the same, and tables are complete."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lift_det.layers import rel_pos_attention

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CONFIG = "COCO/mask_rcnn_vitdet_b_100ep"
TINY = (
    "model.backbone.net.depth=2",
    "model.backbone.net.embed_dim=32",
    "model.backbone.net.num_heads=2",
    "model.backbone.net.window_block_indexes=[0]",
    "model.backbone.net.drop_path_rate=0.0",
)
FEW_PROPOSALS = (
    "model.proposal_generator.post_nms_topk=[30,30]",
    "model.roi_heads.batch_size_per_image=8",
    "model.roi_heads.box_head.conv_dims=[8]",
    "model.roi_heads.box_head.fc_dims=[8]",
    "model.roi_heads.box_predictor.input_shape.channels=8",
    "model.roi_heads.mask_head.conv_dims=[8,8]",
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def tools():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def rows_of(output):
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def number(cell):
    return float(cell.split()[0])


def build_sides(part, size, mode, stock=(), config=CONFIG):
    import benchmark_model

    overrides = [*TINY, *stock]
    options = argparse.Namespace(config=config, overrides=overrides, stock=stock, part=part, image_size=size, batch=1)
    options.dtype, options.stock_dtype, options.device = "fp32", "fp32", "cpu"
    return {name: build() for name, build in benchmark_model.build_sides(options, mode).items()}


@pytest.mark.parametrize("both", [False, True])
def test_implementations_of_attention_agree(both):
    from benchmark_ops import STOCK, attention_job

    expected = attention_job(3, (5, 7), 2, 16, "fp32", both, "cpu", STOCK)()
    for implementation in ("reference", "sdpa"):
        results = attention_job(3, (5, 7), 2, 16, "fp32", both, "cpu", implementation)()
        assert torch.is_tensor(results) is not both
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


def test_implementations_of_masks_agree():
    from benchmark_ops import STOCK, mask_job

    for op in ("paste_masks", "mask_to_rle"):
        ours, stock = (mask_job(op, 5, 28, "cpu", name, (60, 90), 40)() for name in ("torch", STOCK))
        assert torch.equal(ours, stock) and 0.01 < ours.float().mean() < 0.3 if op == "paste_masks" else ours == stock


def test_table_of_ops(capsys):
    import benchmark_ops

    options = "--ops rel_pos_attention --grids 2x5x6 --heads 2x16 --passes both --implementations triton"
    benchmark_ops.main([*options.split(), "--device", "cpu", "--repeats", "2", "--threads", "1"])
    header, stock, ours = rows_of(capsys.readouterr().out)
    assert len(stock) == len(ours) == len(header)
    assert stock[:5] == ["rel_pos_attention", "2 × 5×6, 2 heads × 16", "fp32", "both", "detectron2"]
    low, high = map(float, stock[6].split(" – "))
    assert 0 < low <= number(stock[5]) <= high and number(stock[7]) == 1
    assert number(stock[8]) >= number(stock[9]) > 0.1  # Python and torch alone take more
    assert ours[4] == "triton" and "RuntimeError" in ours[5] and "CUDA" in ours[5]


def test_table_of_models(capsys):
    import benchmark_model

    options = "--part backbone --mode infer --image-size 64 --device cpu --repeats 2 --threads 1 --outputs --floor"
    benchmark_model.main([CONFIG, *options.split(), *TINY])
    output = capsys.readouterr().out
    header, *rows = rows_of(output)
    rows, floors = rows[:2], rows[3:]
    assert [row[:2] for row in rows] == [["detectron2", "infer"], ["lift_det", "infer"]]
    for row in rows:
        assert len(row) == len(header)
        assert all(number(row[i]) > 0 for i in (3, 5, 6, 7))
    assert rows[0][5] == "1.000"
    assert 0 <= float(output.split("in fp32 by ")[1].split()[0].rstrip(".")) < 1e-5
    for row in floors:
        products, rate, convolutions, convolution_rate, floor, median, ratio = map(number, row[2:])
        assert floor == pytest.approx(products / rate + convolutions / convolution_rate, rel=2e-3)
        assert ratio == pytest.approx(floor / median, abs=1e-3, rel=2e-3)
    assert [row[0] for row in floors] == ["detectron2", "lift_det"] and floors[0][4] == floors[1][4]


def test_operations_are_counted():
    from operation_floor import count_operations

    x, weight, kernel = torch.ones(5, 7), torch.ones(11, 7), torch.ones(3, 2, 3, 3)
    q, tables = torch.ones(1, 2, 20, 8, requires_grad=True), (torch.ones(7, 8), torch.ones(9, 8))

    def attend():
        return rel_pos_attention(q, q, q, *tables, (4, 5), (4, 5), 1.0)

    per_key = 2 * 2 * 20 * 8
    for job, products, convolutions in [
        (lambda: F.linear(x, weight), 770, 0),
        (lambda: F.conv2d(x.T[None, :, :, None], weight[:, :, None, None]), 770, 0),
        (lambda: F.conv2d(torch.ones(1, 2, 6, 6), kernel), 0, 2 * 16 * kernel.numel()),
        (lambda: F.scaled_dot_product_attention(q, q, q), 2 * 20 * per_key, 0),
        (attend, (2 * 20 + 9) * per_key, 0),
        # the backward pass: five products with the keys; the bias again and its two gradients
        (lambda: attend().sum().backward(), (7 * 20 + 4 * 9) * per_key, 0),
    ]:
        assert count_operations(job)[0] == {"products": products, "convolutions": convolutions}


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_the_detector_finds_objects_and_trains(mode):
    for side in build_sides("model", 64, mode, stock=FEW_PROPOSALS).values():
        if mode == "infer":
            detections = side.forward()[0]["instances"]
            assert 0 < len(detections) <= 30 and detections.pred_masks.shape[1:] == (64, 64)
            assert set(detections.pred_classes.tolist()) == {0}
        else:
            side()
            gradients = [p.grad for p in side.module.parameters() if p.grad is not None]
            assert sum(float(g.abs().sum()) for g in gradients[:5]) > 0
            assert all(bool(g.isfinite().all()) for g in gradients)


def test_lift_and_its_vit_alone():
    """The ViT sees half of the image, and LiFT doubles its map."""
    sides = build_sides("features", 128, "train", config="COCO/mask_rcnn_lift_vitdet_b_fast_100ep")
    maps = {name: next(iter(side.outputs("fp32").values())).shape for name, side in sides.items()}
    assert maps == {
        "detectron2": (1, 32, 8, 8),
        "lift_det": (1, 32, 8, 8),
        "lift_det, ViT alone": (1, 32, 4, 4),
    }


def test_frozen_part_raises():
    side = build_sides("net", 64, "train")["lift_det"]
    side.module.requires_grad_(False)
    with pytest.raises(RuntimeError, match="frozen"):
        side()
