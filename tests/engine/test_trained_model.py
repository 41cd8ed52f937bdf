"""A trained model from an output folder: configs of both kinds, and checkpoints that fit or do not."""

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from safetensors.torch import save_file

from lift_det import LiFTPlus, config, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.engine import load_model, read_output_folder
from lift_det.engine.trained_model import find_weights
from tests.engine.tiny_detector import tiny_config, write_output_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_output_folder_is_enough(detector_folder):
    cfg, weights = read_output_folder(detector_folder)
    assert weights == str(detector_folder / "model_final.pth")
    cfg.model.backbone.lift.checkpoint = "/gone/lift.safetensors"  # what the training started from is not read
    cfg.model.backbone.net.checkpoint = "/gone/vit.pth"
    before = cfg.copy()
    model = load_model(cfg, weights, "cpu")
    assert cfg == before
    assert not any(module.training for module in model.modules())
    saved, loaded = torch.load(weights)["model"], model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize(
    ("names", "last", "expected"),
    [
        (["model_0000009.pth", "model_0000019.pth"], "model_0000009.pth", "model_0000009.pth"),
        (["model_0000009.pth", "model_final.pth"], "model_0000009.pth", "model_0000009.pth"),  # of an earlier training
        (["model_final.pth"], "", "model_final.pth"),
        (["model_final.pth", "model_ema.pth", "model_best.pth"], "model_final.pth", "model_best.pth"),
        # written as an absolute path on another machine
        (["model_0000009.pth"], "/elsewhere/output/model_0000009.pth\n", "model_0000009.pth"),
    ],
)
def test_which_checkpoint_is_used(tmp_path, names, last, expected):
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "last_checkpoint").write_text(last)
    assert find_weights(tmp_path) == str(tmp_path / expected)


def test_incomplete_folders(detector_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_output_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        read_output_folder(tmp_path)
    (tmp_path / "config.yaml").write_bytes((detector_folder / "config.yaml").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match="model_best.pth.*model_0000009.pth, model_final.pth"):
        read_output_folder(tmp_path)
    assert read_output_folder(tmp_path, detector_folder / "model_final.pth")[1] == str(
        detector_folder / "model_final.pth"
    )


def test_a_lift_is_what_the_checkpoint_has_when_its_file_is_gone(tmp_path):
    cfg = tiny_config()
    lift = LiFTPlus(32, 8, attention_kernel=5, standardize=False, preserve_norm=False)
    torch.nn.init.normal_(lift.outc.weight)
    file = tmp_path / "lift.safetensors"
    save_lift(lift, file)
    cfg.model.backbone.lift.checkpoint = str(file)
    output = write_output_folder(tmp_path / "output", cfg)
    file.unlink()
    loaded = load_model(cfg, output / "model_final.pth", "cpu").backbone.lift
    assert type(loaded) is LiFTPlus and loaded.settings() == lift.settings()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in lift.state_dict().items())
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


def test_a_yacs_config_without_lift_of_detectron2(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(detectron2_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.FPN.OUT_CHANNELS = "cpu", 16
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    assert type(load_model(cfg, tmp_path / "model.pth", "cpu")).__name__ == "RetinaNet"


def test_checkpoints_that_do_not_fit(detector_folder, tmp_path):
    cfg = tiny_config()
    with pytest.raises(CheckpointError, match="absent.pth"):
        load_model(cfg, tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="dataloader"):
        load_model(config.load("common/data/coco_loader_lsj.py"), detector_folder / "model_final.pth", "cpu")
    state = torch.load(detector_folder / "model_final.pth")["model"]
    part = {name: value for name, value in state.items() if not name.startswith("roi_heads.box")}
    torch.save({"model": part}, tmp_path / "part.pth")
    for ignored in ([], ["roi_heads"]):  # a training may start from it with this, but a prediction needs all weights
        cfg.model.ignore_mismatch = ignored
        with pytest.raises(CheckpointError, match="roi_heads.box_"):
            load_model(cfg, tmp_path / "part.pth", "cpu")
    cfg = tiny_config()
    cfg.model.roi_heads.num_classes = 7
    with pytest.raises(CheckpointError):
        load_model(cfg, detector_folder / "model_final.pth", "cpu")
