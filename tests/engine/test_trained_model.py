"""A trained model from an output folder: configs of both kinds, and checkpoints that fit or do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import LazyConfig, get_cfg
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import save_file

from lift_det import LiFTPlus, Predictor, config, model_zoo, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.engine import load_model, read_output_folder
from lift_det.engine.trained_model import find_weights
from tests.engine.tiny_detector import tiny_config, write_output_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output_folder(tmp_path_factory.mktemp("training") / "output")


def test_an_output_folder_is_enough(folder: Path) -> None:
    cfg, weights = read_output_folder(folder)
    assert cfg.model.backbone.net.embed_dim == 32
    assert weights == str(folder / "model_final.pth")
    model = load_model(cfg, weights, "cpu")
    assert not any(module.training for module in model.modules())
    saved, loaded = torch.load(weights)["model"], model.state_dict()
    assert set(saved) == set(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize(
    ("names", "last", "expected"),
    [
        (["model_0000009.pth", "model_0000019.pth"], "model_0000009.pth", "model_0000009.pth"),
        (["model_0000009.pth", "model_final.pth"], "model_final.pth", "model_final.pth"),
        (["model_0000009.pth", "model_final.pth"], "model_0000009.pth", "model_0000009.pth"),  # of an earlier training
        (["model_final.pth"], "", "model_final.pth"),
        (["model_final.pth", "model_ema.pth"], "model_final.pth", "model_ema.pth"),
        (["model_final.pth", "model_ema.pth", "model_best.pth"], "model_final.pth", "model_best.pth"),
        # written as an absolute path on another machine
        (["model_0000009.pth"], "/elsewhere/output/model_0000009.pth\n", "model_0000009.pth"),
    ],
)
def test_which_checkpoint(tmp_path: Path, names: list[str], last: str, expected: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "last_checkpoint").write_text(last)
    assert find_weights(tmp_path) == str(tmp_path / expected)


def test_incomplete_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read_output_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        read_output_folder(tmp_path)
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match="model_best.pth.*model_0000009.pth, model_final.pth"):
        read_output_folder(tmp_path)
    assert read_output_folder(tmp_path, folder / "model_final.pth")[1] == str(folder / "model_final.pth")


def test_weights_to_start_from_are_not_read(folder: Path) -> None:
    """The files may be gone, and a download would need a network."""
    cfg = tiny_config()
    cfg.model.backbone.lift.checkpoint = "/gone/lift.safetensors"
    cfg.model.backbone.net.checkpoint = "/gone/vit.pth"
    before = LazyConfig.to_py(cfg)
    load_model(cfg, folder / "model_final.pth", "cpu")
    assert LazyConfig.to_py(cfg) == before


@pytest.mark.parametrize("settings", [{}, {"attention_kernel": 5, "standardize": False, "preserve_norm": False}])
def test_a_lift_is_what_the_checkpoint_has_when_its_file_is_gone(settings: dict, tmp_path: Path) -> None:
    cfg = tiny_config()
    lift = LiFTPlus(32, 8, **settings)
    torch.nn.init.normal_(lift.outc.weight)
    file = tmp_path / "lift.safetensors"
    save_lift(lift, file)
    cfg.model.backbone.lift.checkpoint = str(file)
    output = write_output_folder(tmp_path / "output", cfg)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    before = Predictor.from_folder(output, device="cpu")(image)["instances"]
    file.unlink()
    predictor = Predictor.from_folder(output, device="cpu")
    loaded = predictor.model.backbone.lift
    assert type(loaded) is LiFTPlus and loaded.settings() == lift.settings()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in lift.state_dict().items())
    after = predictor(image)["instances"]
    assert len(after) and torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    # the config may not contradict
    cfg.model.backbone.lift.name = "lift"
    with pytest.raises(CheckpointError, match="name=lift_plus"):
        load_model(cfg, output / "model_final.pth", "cpu")
    # weights without LiFT's settings need the file
    save_lift(lift, file)
    cfg.model.backbone.lift.name = None
    weights = torch.load(output / "model_final.pth", weights_only=True)["model"]
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    assert load_model(cfg, tmp_path / "model.safetensors", "cpu").backbone.lift.settings() == lift.settings()


def test_a_trained_lift_of_a_yacs_config(tmp_path: Path) -> None:
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml")
    file = tmp_path / "lift.safetensors"
    save_lift(LiFTPlus(64, 8), file)
    cfg.MODEL.LIFT.CHECKPOINT = str(file)
    model = build_model(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    file.unlink()
    loaded = load_model(*read_output_folder(tmp_path), "cpu")
    assert type(loaded.backbone.lift) is LiFTPlus
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_plain_yacs_configs_of_detectron2(tmp_path: Path) -> None:
    """Without add_lift_config."""
    cfg = get_cfg()
    cfg.merge_from_file(detectron2_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    assert type(load_model(cfg, tmp_path / "model.pth", "cpu")).__name__ == "RetinaNet"


def test_checkpoints_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    cfg = tiny_config()
    with pytest.raises(CheckpointError, match="absent.pth"):
        load_model(cfg, tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="dataloader"):
        load_model(config.load("common/data/coco_loader_lsj.py"), folder / "model_final.pth", "cpu")
    state = torch.load(folder / "model_final.pth")["model"]
    part = {name: value for name, value in state.items() if not name.startswith("roi_heads.box")}
    torch.save({"model": part}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="roi_heads.box_"):
        load_model(cfg, tmp_path / "part.pth", "cpu")
    # a training may start from it with this, but a prediction needs all weights
    cfg.model.ignore_mismatch = ["roi_heads"]
    with pytest.raises(CheckpointError, match="roi_heads.box_"):
        load_model(cfg, tmp_path / "part.pth", "cpu")
    cfg = tiny_config()
    cfg.model.roi_heads.num_classes = 7
    with pytest.raises(CheckpointError):
        load_model(cfg, folder / "model_final.pth", "cpu")
