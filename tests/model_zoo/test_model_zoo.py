"""Configs by name and their models."""

from pathlib import Path

import pytest
import torch

from lift_det import config as implementation
from lift_det import model_zoo

SMALL = "quick_schedules/mask_rcnn_lift_synthetic_cpu"
CONV_CONFIG = """
from detectron2.config import LazyCall as L
from torch import nn

model = L(nn.Conv2d)(in_channels=1, out_channels=2, kernel_size=1)
train = dict(init_checkpoint={!r}, device="cpu")
"""


def test_names() -> None:
    assert {f"{SMALL}.py", f"{SMALL}.yaml"} <= set(model_zoo.list_configs())
    for name in (SMALL, f"{SMALL}.py", f"{SMALL}.yaml", "common/lift_training.py"):
        path = Path(model_zoo.get_config_file(name))
        assert path.is_file() and str(path).removesuffix(".py").endswith(name.removesuffix(".py"))


@pytest.mark.parametrize(
    ("name", "close"),
    [
        (SMALL.replace("cpu", "cup"), SMALL),
        ("mask_rcnn_lift_synthetic_cpu", SMALL),
        (f"{SMALL}.yml", f"{SMALL}.yaml"),
        ("zzzz", ""),
        ("../setup.py", ""),  # files outside the configs
        (__file__, ""),
        ("COCO", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(name: str, close: str) -> None:
    with pytest.raises(model_zoo.ConfigNotFoundError) as caught:
        model_zoo.get_config(name)
    assert isinstance(caught.value, RuntimeError) and f"'{name}'" in str(caught.value) and close in str(caught.value)


def test_get_builds_the_model_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "_PACKAGE_FOLDER", tmp_path)
    folder = tmp_path / "model_zoo" / "configs" / "COCO"
    folder.mkdir(parents=True)
    weights = {"weight": torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1), "bias": torch.tensor([5.0, 6.0])}
    torch.save({"model": weights}, tmp_path / "start.pth")
    (folder / "new.py").write_text(CONV_CONFIG.format(""))
    (folder / "started.py").write_text(CONV_CONFIG.format(str(tmp_path / "start.pth")))
    (folder / "absent.py").write_text(CONV_CONFIG.format("weights/absent.pth?matching_heuristics=True"))
    assert model_zoo.get("COCO/new", device="meta").weight.device.type == "meta"
    model = model_zoo.get("COCO/started", device="cpu")
    assert model.training and torch.equal(model.weight, weights["weight"])
    with pytest.raises(FileNotFoundError, match="'weights/absent.pth'.*LIFT_DET_WEIGHTS"):
        model_zoo.get("COCO/absent")
