"""Configs by name and their models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lift_det import config as implementation
from lift_det import model_zoo

CONV_CONFIG = """
from detectron2.config import LazyCall as L
from torch import nn

from ..common.train import train

model = L(nn.Conv2d)(in_channels=1, out_channels=2, kernel_size=1)
"""


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with configs of its own, in place of lift_det's."""
    folder = tmp_path / "package" / "model_zoo" / "configs"
    for name, text in {
        "common/train.py": "train = dict(init_checkpoint='', device='cpu')\n",
        "COCO/conv.py": CONV_CONFIG,
        "COCO/dotted_v1.5.py": CONV_CONFIG,
        "COCO/yacs.yaml": "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n  WEIGHTS: ''\n",
        "COCO/README.md": "not a config",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(implementation, "_PACKAGE_FOLDER", tmp_path / "package")
    return folder


def test_names(configs: Path) -> None:
    assert model_zoo.list_configs() == ["COCO/conv.py", "COCO/dotted_v1.5.py", "COCO/yacs.yaml"]
    for name in ("COCO/conv.py", "COCO/conv"):
        assert model_zoo.get_config_file(name) == str(configs / "COCO" / "conv.py")
    assert model_zoo.get_config_file("COCO/yacs") == str(configs / "COCO" / "yacs.yaml")
    assert model_zoo.get_config_file("COCO/dotted_v1.5") == str(configs / "COCO" / "dotted_v1.5.py")
    assert model_zoo.get_config_file("common/train.py") == str(configs / "common" / "train.py")


@pytest.mark.parametrize(
    ("name", "close"),
    [("COCO/cnov.py", "COCO/conv.py"), ("conv", "COCO/conv.py"), ("COCO/yacs.yml", "COCO/yacs.yaml"), ("zzzz", "")],
)
def test_an_unknown_name_is_answered_with_close_ones(configs: Path, name: str, close: str) -> None:
    with pytest.raises(RuntimeError, match=f"'{name}'.*{close}.*list_configs"):
        model_zoo.get_config(name)


def test_files_outside_the_configs_are_not_configs(configs: Path) -> None:
    outside = configs.parent / "outside.py"
    outside.write_text("train = dict()\n")
    for name in ("../outside.py", str(outside), "COCO/README.md", "COCO", ""):
        with pytest.raises(model_zoo.ConfigNotFoundError):
            model_zoo.get_config_file(name)


def test_get_builds_the_model_with_its_weights(configs: Path, tmp_path: Path) -> None:
    model = model_zoo.get("COCO/conv", device="cpu")
    assert isinstance(model, torch.nn.Conv2d) and model.training and model.weight.device.type == "cpu"
    assert model_zoo.get("COCO/conv", device="meta").weight.device.type == "meta"
    train = "train = dict(init_checkpoint={!r}, device='cpu')\n"
    (configs / "common" / "train.py").write_text(train.format(str(tmp_path / "start.pth")))
    weights = {"weight": torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1), "bias": torch.tensor([5.0, 6.0])}
    torch.save({"model": weights}, tmp_path / "start.pth")
    assert torch.equal(model_zoo.get("COCO/conv", device="cpu").weight, weights["weight"])
    (configs / "common" / "train.py").write_text(train.format("weights/absent.pth?matching_heuristics=True"))
    with pytest.raises(FileNotFoundError, match="'weights/absent.pth'.*LIFT_DET_WEIGHTS"):
        model_zoo.get("COCO/conv", device="cpu")
