"""The benchmarks compare what they say: equal work on both sides, counted rightly, in rows with numbers."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

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
    """The scripts import each other as Python lets scripts do, by the folder that they are in."""
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def _rows(output):
    """The cells of the rows of all tables, without the lines below the headers."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _number(cell):
    return float(cell.split()[0])


def _sides(part, size, train=False, overrides=(), config=CONFIG):
    import model_sides

    overrides = (*TINY, *overrides)
    ours = model_sides.Settings(config, overrides, part, train, size, 1, "fp32", "cpu")
    net = model_sides.stock_net(model_sides.our_config(config, overrides, size))
    stock_overrides = overrides[len(TINY) :]
    stock = ours._replace(config="common/models/mask_rcnn_vitdet.py", overrides=stock_overrides)
    return model_sides.build_stock(net, stock), model_sides.build_ours(ours)


@pytest.mark.parametrize("both", [False, True])
def test_every_attention_does_the_same_work(both):
    from benchmark_ops import STOCK, attention_job

    expected = attention_job(3, (5, 7), 2, 16, "fp32", both, "cpu", STOCK)()
    for implementation in ("reference", "sdpa", "masked", "widened", "blocked"):
        results = attention_job(3, (5, 7), 2, 16, "fp32", both, "cpu", implementation)()
        assert torch.is_tensor(results) is not both
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


def test_every_mask_is_the_same():
    from benchmark_ops import STOCK, mask_job

    pasted = mask_job("paste_masks", 5, 28, (60, 90), 40, "cpu", STOCK)()
    assert 0.01 < pasted.float().mean() < 0.3
    assert torch.equal(mask_job("paste_masks", 5, 28, (60, 90), 40, "cpu", "boxes")(), pasted)
    encoded = mask_job("mask_to_rle", 5, 28, (60, 90), 40, "cpu", STOCK)()
    assert mask_job("mask_to_rle", 5, 28, (60, 90), 40, "cpu", "boxes")() == encoded


def test_table_of_ops(capsys):
    import benchmark_ops

    options = "--ops rel_pos_attention --grids 2x5x6 --heads 2x16 --passes both --implementations sdpa triton"
    benchmark_ops.main([*options.split(), "--device", "cpu", "--repeats", "2", "--threads", "1"])
    header, *rows = _rows(capsys.readouterr().out)
    assert [row[4] for row in rows] == ["detectron2", "sdpa", "triton"]
    assert all(len(row) == len(header) for row in rows)
    for row in rows[:2]:
        assert row[:4] == ["rel_pos_attention", "2 × 5×6, 2 heads × 16", "fp32", "both"]
        low, high = map(float, row[6].split(" – "))
        assert 0 < low <= _number(row[5]) <= high
        assert _number(row[8]) >= _number(row[9]) > 0.1  # Python and torch take more than that
    assert _number(rows[0][7]) == 1 and _number(rows[1][7]) > 0
    assert rows[2][5].startswith("RuntimeError") and "CUDA" in rows[2][5]  # says why it cannot run


def test_table_of_models(capsys):
    import benchmark_model

    options = "--part backbone --mode both --image-size 64 --device cpu --repeats 2 --threads 1 --outputs"
    benchmark_model.main([CONFIG, *options.split(), *TINY])
    output = capsys.readouterr().out
    header, *rows = _rows(output)
    assert [row[:3] for row in rows] == [
        [side, mode, "fp32"] for mode in ("infer", "train") for side in ("detectron2", "lift_det")
    ]
    for row in rows:
        assert len(row) == len(header)
        assert all(_number(row[i]) > 0 for i in (3, 5, 6, 7))
    assert [row[5] for row in rows if row[0] == "detectron2"] == ["1.000"] * 2
    differs_by = float(output.split("in fp32 by ")[1].split()[0].rstrip("."))
    assert 0 <= differs_by < 1e-5


def test_both_sides_multiply_as_much_where_no_window_is_padded():
    from operation_floor import count_operations

    stock, ours = (count_operations(side) for side in _sides("backbone", 448))  # 28×28 tokens: four windows of 14×14
    assert stock == ours and all(stock.values())
    padded, lean = (count_operations(side) for side in _sides("net", 320))  # 20×20 tokens
    assert lean["products"] < padded["products"]
    stock, ours = (count_operations(side) for side in _sides("net", 448, train=True))
    # the backward makes the scores again (of five products one), and with them the bias
    assert stock["products"] < ours["products"] < 1.2 * stock["products"]


def test_operations_are_counted():
    from operation_floor import count_operations, floor_seconds

    x, weight, kernel = torch.ones(5, 7), torch.ones(11, 7), torch.ones(3, 2, 3, 3)
    counts = count_operations(lambda: (F.linear(x, weight), F.conv2d(torch.ones(1, 2, 6, 6), kernel)))
    assert counts == {"products": 2 * 5 * 7 * 11, "convolutions": 2 * 16 * 3 * 18}
    pointwise = count_operations(lambda: F.conv2d(x.T[None, :, :, None], weight[:, :, None, None]))
    assert pointwise == {"products": 2 * 5 * 7 * 11, "convolutions": 0}
    assert floor_seconds(counts, {"products": 770, "convolutions": 1728}) == 2
    q = torch.ones(1, 2, 16, 8)
    assert count_operations(lambda: F.scaled_dot_product_attention(q, q, q))["products"] == 4 * 2 * 16 * 16 * 8


def test_the_detector_finds_objects_and_trains():
    for side in _sides("model", 64, overrides=FEW_PROPOSALS):
        detections = side._forward()[0]["instances"]
        assert 0 < len(detections) <= 30 and detections.pred_masks.shape[1:] == (64, 64)
        assert set(detections.pred_classes.tolist()) == {0}
    for side in _sides("model", 64, train=True, overrides=FEW_PROPOSALS):
        side()
        gradients = [p.grad for p in side.module.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients[:5]) > 0
        assert all(bool(g.isfinite().all()) for g in gradients)


def test_the_share_of_lift_is_measured():
    import benchmark_model

    options = argparse.Namespace(
        config="COCO/mask_rcnn_lift_vitdet_b_fast_100ep",
        overrides=list(TINY),
        stock=[],
        part="features",
        image_size=128,
        batch=1,
        dtype="bf16",
        stock_dtype="fp32",
        device="cpu",
    )
    sides = benchmark_model._sides(options, "train")
    assert list(sides) == ["detectron2", "lift_det", "lift_det, ViT alone"]
    maps = {name: build(settings).outputs(settings.dtype) for name, (build, settings) in sides.items()}
    # the ViT sees half of the image, and LiFT doubles its map
    assert [next(iter(out.values())).shape for out in maps.values()] == [(1, 32, 8, 8), (1, 32, 8, 8), (1, 32, 4, 4)]


def test_a_frozen_part_says_so():
    _, ours = _sides("net", 64, train=True, overrides=())
    ours.module.requires_grad_(False)
    with pytest.raises(RuntimeError, match="frozen"):
        ours()
