"""The shipped figures are those of the shipped configs."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from lift_det import model_zoo
from lift_det.engine.measure import describe_model, pretrained_source
from lift_det.engine.trained_model import build_without_weights

MEASURED = model_zoo.read_measurements()


class _DropPathRates(TorchFunctionMode):
    """detectron2's ViT reads its rates from a tensor, and on the meta device there are no values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {})})


def test_every_shipped_config_is_measured_and_no_other():
    assert list(MEASURED) == model_zoo.list_configs()


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_figures_are_of_the_config_as_it_is_now(name):
    cfg = model_zoo.get_config(name)
    with torch.device("meta"), _DropPathRates():
        facts = describe_model(build_without_weights(cfg))
    shipped = MEASURED[name]
    assert facts == {key: shipped[key] for key in facts}
    assert pretrained_source(cfg) == shipped["pretrained"]
    assert shipped["seconds"] > 0 and shipped["gflops"] > 0.01 and shipped["peak_memory"] > 1e8
    assert shipped["hardware"] and shipped["runs"] >= 1


def test_figures_of_dense_and_fast_fit_each_other():
    dense, fast, stock = (
        MEASURED[f"COCO/mask_rcnn_{name}.py"]
        for name in ("lift_vitdet_b_100ep", "lift_vitdet_b_fast_100ep", "vitdet_b_100ep")
    )
    assert (dense["seen_size"], fast["seen_size"], stock["seen_size"]) == (1024, 512, 1024)
    assert dense["strides"] == fast["strides"] == stock["strides"] == [4, 8, 16, 32, 64]
    assert fast["gflops"] < stock["gflops"] < dense["gflops"]
    assert fast["seconds"] < stock["seconds"]


def test_table():
    here, there = {**MEASURED["LiFT/lift_vits14_cpu.py"], "hardware": "here"}, MEASURED["LiFT/lift_dino_vits8.py"]
    table = model_zoo.measurement_table({"a": {**here, "runs": 1, "gflops": 1234.6}, "b": None}, "github")
    header, _, first, second = table.splitlines()[:4]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert len(cells) == len(header.strip("|").split("|"))
    assert cells[0] == "a" and cells[1] == f"{here['parameters'] / 1e6:.1f}" and cells[6] == "7"
    assert cells[3] == "1235"
    assert cells[8].endswith("*")  # a single pass
    assert not second.replace("b", "").strip("| ")
    assert cells[-1] == "[1]" and table.endswith("\n[1] here")
    # of two machines each row says which
    table = model_zoo.measurement_table({"a": here, "b": there})
    assert "[1] here" in table and f"[2] {there['hardware']}" in table
    row = next(line for line in table.splitlines() if line.startswith("b "))
    assert row.endswith("[2]")
