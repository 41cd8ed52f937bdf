"""Configs by name: every listed one loads, wrong names are answered with close ones, models come with their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig

from lift_det import config as implementation
from lift_det import model_zoo

CHECKOUT_CONFIGS = Path(__file__).resolve().parents[2] / "configs"

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
        "quick_schedules/conv_instant_test.py": CONV_CONFIG,
        "COCO/README.md": "not a config",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(implementation, "_PACKAGE_FOLDER", tmp_path / "package")
    return folder


def test_list_has_every_config_on_disk_but_the_parts() -> None:
    on_disk = {
        path.relative_to(CHECKOUT_CONFIGS).as_posix()
        for path in CHECKOUT_CONFIGS.rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    names = model_zoo.list_configs()
    assert names == sorted(name for name in on_disk if not name.startswith("common/"))
    assert "COCO/mask_rcnn_lift_vitdet_b_100ep.py" in names


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_every_listed_config_loads(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # from any folder
    config = model_zoo.get_config(name)
    if name.endswith(".yaml"):
        assert isinstance(config, CfgNode) and "LIFT" in config.MODEL
    else:
        assert isinstance(config, DictConfig) and {"model", "optimizer", "dataloader", "train"} <= set(config)


def test_loading_twice_gives_two_configs() -> None:
    first = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep")
    first.train.max_iter = 1
    assert model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep").train.max_iter > 1


def test_saved_config_is_the_same_config(tmp_path: Path) -> None:
    """No lambdas in configs: they survive being written as YAML, which is what detectron2's trainer does first."""
    config = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(config, path)
    assert not Path(path + ".pkl").exists()
    saved = LazyConfig.load(path)
    assert saved.train == config.train
    assert saved.model.backbone.lift._target_.rsplit(".", 1)[-1] == "LazyUpsampler"


def test_names(configs: Path) -> None:
    assert model_zoo.list_configs() == [
        "COCO/conv.py",
        "COCO/dotted_v1.5.py",
        "COCO/yacs.yaml",
        "quick_schedules/conv_instant_test.py",
    ]
    for name in ("COCO/conv.py", "COCO/conv"):
        assert model_zoo.get_config_file(name) == str(configs / "COCO" / "conv.py")
    assert model_zoo.get_config_file("COCO/yacs") == str(configs / "COCO" / "yacs.yaml")
    assert model_zoo.get_config_file("COCO/dotted_v1.5") == str(configs / "COCO" / "dotted_v1.5.py")
    assert model_zoo.get_config_file("common/train.py") == str(configs / "common" / "train.py")


def test_package_configs_come_before_the_checkouts(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # <checkout>/lift_det/model_zoo with configs inside, as in a wheel, and <checkout>/configs
    package = configs.parent / "checkout" / "lift_det"
    in_package = package / "model_zoo" / "configs"
    in_package.mkdir(parents=True)
    in_checkout = package.parent / "configs"
    in_checkout.mkdir()
    monkeypatch.setattr(implementation, "_PACKAGE_FOLDER", package)
    assert implementation._configs_folder() == in_package
    in_package.rmdir()
    assert implementation._configs_folder() == in_checkout
    in_checkout.rmdir()
    with pytest.raises(model_zoo.ConfigNotFoundError, match="incomplete"):
        model_zoo.list_configs()


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("COCO/cnov.py", "COCO/conv.py"),
        ("conv", "COCO/conv.py"),
        ("coco/conv.py", "COCO/conv.py"),
        ("COCO/conv_instant_test", "quick_schedules/conv_instant_test.py"),
        ("COCO/yacs.yml", "COCO/yacs.yaml"),
    ],
)
def test_unknown_name_is_answered_with_close_ones(configs: Path, name: str, close: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        model_zoo.get_config(name)
    message = str(caught.value)
    assert f"'{name}'" in message and close in message
    assert "lift-det configs" in message and "list_configs()" in message


def test_name_far_from_all_still_says_how_to_list(configs: Path) -> None:
    with pytest.raises(model_zoo.ConfigNotFoundError, match="list_configs") as caught:
        model_zoo.get_config_file("zzzz")
    assert "Close to it" not in str(caught.value)


def test_files_outside_the_configs_are_no_configs(configs: Path) -> None:
    outside = configs.parent / "outside.py"
    outside.write_text("train = dict()\n")
    for name in ("../outside.py", str(outside), "COCO/README.md", "COCO", ""):
        with pytest.raises(model_zoo.ConfigNotFoundError):
            model_zoo.get_config_file(name)


def test_get_builds_the_model_on_the_device(configs: Path) -> None:
    model = model_zoo.get("COCO/conv", device="cpu")
    assert isinstance(model, torch.nn.Conv2d) and model.training
    assert model.weight.device.type == "cpu" and model.weight.shape == (2, 1, 1, 1)
    assert model_zoo.get("COCO/conv", device="meta").weight.device.type == "meta"


def test_get_loads_what_the_config_starts_from(configs: Path, tmp_path: Path) -> None:
    weights = {"weight": torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1), "bias": torch.tensor([5.0, 6.0])}
    torch.save({"model": weights}, tmp_path / "start.pth")
    (configs / "common" / "train.py").write_text(f"train = dict(init_checkpoint={str(tmp_path / 'start.pth')!r})\n")
    model = model_zoo.get("COCO/conv", device="cpu")
    assert torch.equal(model.weight, weights["weight"]) and torch.equal(model.bias, weights["bias"])


def test_get_says_what_to_do_without_the_weights(configs: Path) -> None:
    train = "train = dict(init_checkpoint='weights/absent.pth?matching_heuristics=True')\n"
    (configs / "common" / "train.py").write_text(train)
    with pytest.raises(FileNotFoundError, match="LIFT_DET_WEIGHTS") as caught:
        model_zoo.get("COCO/conv", device="cpu")
    assert "'weights/absent.pth'" in str(caught.value) and "instantiate(" in str(caught.value)
