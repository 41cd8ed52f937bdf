"""Configs by name or path with overrides, and the lengths and learning rates that follow from a key or two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

from lift_det import BilinearUpsample, LiFT, LiFTPlus, cli, config, model_zoo

ROOT = Path(__file__).resolve().parents[1]
LAZY = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
YACS = "quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml"
COCO = "COCO/mask_rcnn_lift_vitdet_b_100ep"


@pytest.mark.parametrize("name", [LAZY, LAZY.removesuffix(".py"), Path(LAZY), str(ROOT / "configs" / LAZY)])
def test_a_lazy_config_by_name_or_path(name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # from any folder
    cfg = config.load(name)
    assert isinstance(cfg, DictConfig) and cfg.train.output_dir == "./output/mask_rcnn_synthetic"
    assert config.find_config(name) == str(ROOT / "configs" / LAZY)


@pytest.mark.parametrize("name", [YACS, str(ROOT / "configs" / YACS), "COCO/mask_rcnn_lift_vitdet_b_100ep.yaml"])
def test_a_yacs_config_by_name_or_path(name: str) -> None:
    cfg = config.load(name)
    assert isinstance(cfg, CfgNode) and cfg.MODEL.LIFT.CHECKPOINT == ""
    assert cfg.MODEL.BACKBONE.NAME == "build_lift_vitdet_backbone"


def test_a_file_comes_before_a_shipped_config_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick_schedules").mkdir()
    (tmp_path / LAZY).write_text("train = dict(max_iter=7)\n")
    assert config.load(LAZY).train == {"max_iter": 7}
    # the model zoo knows shipped ones alone
    assert model_zoo.get_config(LAZY).train.max_iter == 700


def test_yaml_files_of_both_kinds(tmp_path: Path) -> None:
    """They are told apart by their keys: a training of either leaves a config.yaml."""
    path = tmp_path / "config.yaml"
    path.write_text(config.load(YACS).dump())
    again = config.load(path)
    assert isinstance(again, CfgNode) and again.MODEL.VIT == config.load(YACS).MODEL.VIT
    path.write_text("SOLVER:\n  MAX_ITER: 9\n")  # a part of one
    assert config.load(path).SOLVER.MAX_ITER == 9
    LazyConfig.save(config.load(LAZY), str(path))
    assert isinstance(config.load(path), DictConfig)
    path.write_text("MODEL:\n  LIFT:\n    POOL: 3\n")
    with pytest.raises(ValueError, match="config.yaml' cannot be read: Non-existent config key: MODEL.LIFT.POOL"):
        config.load(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="config.yaml' is no config"):
        config.load(path)


def test_overrides() -> None:
    cfg = config.load(LAZY, ["train.max_iter=3", "model.backbone.lift.checkpoint=a/b.pth", "train.hooks=[]"])
    assert (cfg.train.max_iter, cfg.model.backbone.lift.checkpoint, list(cfg.train.hooks)) == (3, "a/b.pth", [])
    # both of detectron2's ways to write those of yacs
    for overrides in (
        ["SOLVER.MAX_ITER=9", "MODEL.LIFT.CHECKPOINT=a=b.pth", "MODEL.SIMPLE_FPN.LEVEL_STRIDES=[8, 16]"],
        ["SOLVER.MAX_ITER", "9", "MODEL.LIFT.CHECKPOINT", "a=b.pth", "MODEL.SIMPLE_FPN.LEVEL_STRIDES", "[8, 16]"],
    ):
        cfg = config.load(YACS, overrides)
        assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.LIFT.CHECKPOINT) == (9, "a=b.pth")
        assert cfg.MODEL.SIMPLE_FPN.LEVEL_STRIDES == [8, 16]
    assert config.load(YACS).SOLVER.MAX_ITER == 4  # each load gives a config of its own


@pytest.mark.parametrize(
    ("name", "override"),
    [
        (LAZY, "train.max_iter"),
        (LAZY, "train.max_iter=[1"),
        (LAZY, "train.max_iter.x=1"),
        (LAZY, "~train.max_iter"),
        (YACS, "SOLVER.NO_SUCH_KEY=1"),
        (YACS, "SOLVER.MAX_ITER"),
        (YACS, "SOLVER.MAX_ITER=many"),
        (YACS, "MODEL.LIFT.NETWORK=trunk"),  # what a file says is no key
    ],
)
def test_an_override_that_cannot_be_applied(name: str, override: str) -> None:
    with pytest.raises(config.OverrideError, match="cannot be applied") as caught:
        config.load(name, [override])
    assert override in str(caught.value) and isinstance(caught.value, ValueError)


def test_the_command_takes_a_wrong_override_for_a_wrong_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pth").touch()
    command = ["predict", "x.jpg", "--config-file", LAZY, "--weights", str(tmp_path / "model.pth"), "--device", "cpu"]
    assert cli.main([*command, "--output", str(tmp_path / "out"), "train.max_iter.x=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lift-det predict: the overrides ['train.max_iter.x=1'] cannot be applied: ")


def test_an_unknown_name_is_answered_with_close_ones(tmp_path: Path) -> None:
    for name in ("COCO/mask_rcnn_lift_vitdet_b_100epochs", "mask_rcnn_lift_vitdet_b_100ep.py"):
        with pytest.raises(config.ConfigNotFoundError, match=f"There is no config '{name}'") as caught:
            config.load(name)
        assert "COCO/mask_rcnn_lift_vitdet_b_100ep.py" in str(caught.value)
        assert "lift-det configs --names" in str(caught.value)
    with pytest.raises(config.ConfigNotFoundError, match="absent.py', neither a file nor a shipped one"):
        config.load(tmp_path / "absent.py")
    with pytest.raises(config.ConfigNotFoundError):
        config.load(tmp_path)


def test_a_saved_config_loads_again_and_still_follows_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    LazyConfig.save(config.load(COCO, ["train.epochs=50"]), str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    cfg = config.load(path)
    assert cfg.train.max_iter == 92188 and cfg.train.epochs == 50
    assert config.load(path, ["train.epochs=25"]).train.max_iter == 46094
    instantiate(cfg.lr_multiplier)


EARLIER = """
model:
  _target_: lift_det.LiFTFeaturePyramid
  in_feature: last_feat
  input_scale: {input_scale}
  lift: {lift}
  net: {{_target_: lift_det.ViT, depth: 1, embed_dim: 32, img_size: 64, num_heads: 2, patch_size: 8}}
  out_channels: 16
  scale_factors: {scale_factors}
  steps: 1
"""
LIFT = (
    "{{_target_: lift_det.LiFT, checkpoint: '', in_channels: '${{..net.embed_dim}}', keep_length: {}, network: {}, "
    "norm: BN, normalize: {}, patch_size: '${{..net.patch_size}}', pool: {}, residual: {}}}"
)


@pytest.mark.parametrize(
    ("input_scale", "lift", "scale_factors", "kind", "settings"),
    [
        (1.0, LIFT.format("false", "paper", "false", 0, "false"), [1.0, 0.5, 0.25, 0.125], LiFT, {"residual": False}),
        (0.5, LIFT.format("true", "paper", "false", 0, "true"), [2.0, 1.0, 0.5, 0.25], LiFT, {"keep_length": True}),
        (0.5, LIFT.format("true", "trunk", "true", 3, "true"), [2.0, 1.0, 0.5, 0.25], LiFTPlus, {"network": "trunk"}),
        (
            0.5,
            LIFT.format("false", "paper", "false", 5, "true"),
            [2.0, 1.0, 0.5, 0.25],
            LiFTPlus,
            {"network": "paper", "pool": 5, "normalize": False, "keep_length": False},
        ),
        (1.0, "{_target_: lift_det.BilinearUpsample}", [1.0, 0.5, 0.25, 0.125], BilinearUpsample, {}),
        (1.0, "null", [2.0, 1.0, 0.5, 0.25], type(None), {}),
    ],
)
def test_a_config_of_an_earlier_training_is_read(input_scale, lift, scale_factors, kind, settings, tmp_path) -> None:
    """As trainings saved it when LiFT was one class with a key for each of its kinds, and the pyramid had factors."""
    path = tmp_path / "config.yaml"
    path.write_text(EARLIER.format(input_scale=input_scale, lift=lift, scale_factors=scale_factors))
    pyramid = instantiate(config.load(path).model)
    assert [shape.stride for shape in pyramid.output_shape().values()] == [4, 8, 16, 32]
    assert type(pyramid.lift) is kind
    assert settings.items() <= (pyramid.lift.settings() if pyramid.lift is not None else {}).items()


def test_an_earlier_control_over_timms_vit_is_read(tmp_path) -> None:
    net = "{_target_: lift_det.TimmViT, name: vit_tiny_patch16_224, pretrained: false, depth: 1}"
    text = EARLIER.format(input_scale=1.0, lift="{_target_: lift_det.BilinearUpsample}", scale_factors=[2.0, 1.0])
    lines = [f"  net: {net}" if line.startswith("  net:") else line for line in text.splitlines()]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    pyramid = instantiate(config.load(tmp_path / "config.yaml").model)
    assert [shape.stride for shape in pyramid.output_shape().values()] == [4, 8]


@pytest.mark.parametrize(
    ("overrides", "iterations"),
    [
        ([], 184375),
        (["train.epochs=50"], 92188),  # 92187.5
        (["dataloader.train.total_batch_size=16"], 737500),
        (["dataloader.train.total_batch_size=16", "train.epochs=12"], 88500),
        (["train.epoch_images=64"], 100),
        (["train.max_iter=5"], 5),
    ],
)
def test_a_key_changes_the_length_and_the_steps_stay_at_their_shares(overrides: list[str], iterations: int) -> None:
    cfg = config.load(COCO, overrides)
    assert cfg.train.max_iter == iterations
    multiplier = instantiate(cfg.lr_multiplier)
    for share, before, after in ((8 / 9, 1.0, 0.1), (26 / 27, 0.1, 0.01)):
        assert multiplier(share - 1e-5) == before and multiplier(share + 1e-5) == after


def test_the_default_schedule_is_vitdets() -> None:
    """The learning rate of every iteration near the steps and of the warm-up is that of the numbers in iterations."""
    cfg = config.load(COCO)
    assert cfg.train.max_iter == 184375
    new = instantiate(cfg.lr_multiplier)
    old = WarmupParamScheduler(
        MultiStepParamScheduler(values=[1.0, 0.1, 0.01], milestones=[163889, 177546], num_updates=184375),
        warmup_length=250 / 184375,
        warmup_factor=0.001,
    )
    near = [*range(300), *(i for step in (163889, 177546) for i in range(step - 200, step + 200)), 184374, 184375]
    assert [new(i / 184375) for i in near] == [old(i / 184375) for i in near]
    assert [i for i in near[1:] if i > 300 and new(i / 184375) < new((i - 1) / 184375)] == [163889, 177546]


def test_detectron2s_own_tool_reads_a_saved_config(tmp_path: Path) -> None:
    """It imports no lift_det, and saves what it has read before it builds anything."""
    for name, iterations in ((COCO, 184375), ("LiFT/lift_dino_vits16", 18438)):
        path = tmp_path / "config.yaml"
        LazyConfig.save(config.load(name), str(path))
        source = (
            "import sys\n"
            "from detectron2.config import LazyConfig\n"
            f"cfg = LazyConfig.load({str(path)!r})\n"
            f"LazyConfig.save(cfg, {str(tmp_path / 'again.yaml')!r})\n"
            "print(cfg.train.max_iter)\n"
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == f"{iterations}\n", done.stderr
        assert config.load(tmp_path / "again.yaml").train.max_iter == iterations


@pytest.mark.parametrize(
    ("name", "iterations"),
    [
        ("COCO/mask_rcnn_lift_vitdet_l_100ep", 184375),
        ("COCO/mask_rcnn_lift_dino_vits16_frozen", 46094),
        ("COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu", 354000),
        ("LiFT/lift_dino_vits16", 18438),
        ("LiFT/lift_vits14_cpu", 7000),
        ("quick_schedules/lift_synthetic_cpu", 100),
        ("quick_schedules/mask_rcnn_lift_synthetic_cpu", 700),
        ("quick_schedules/mask_rcnn_lift_dinov2_vits14_320", 59000),
        ("quick_schedules/mask_rcnn_lift_vits14_overfit", 300),
        ("quick_schedules/mask_rcnn_lift_vitdet_b_instant_test", 2),
    ],
)
def test_every_schedule_is_as_long_as_it_was(name: str, iterations: int) -> None:
    assert config.load(name).train.max_iter == iterations


def test_what_is_derived_from_the_length_follows_it() -> None:
    cfg = config.load("LiFT/lift_vits14_cpu", ["train.epochs=2"])
    assert cfg.train.eval_period == cfg.train.max_iter == 700


@pytest.mark.parametrize(("epochs", "images", "batch", "expected"), [(1, 10, 3, 4), (0.8, 1000, 8, 100), (5, 8, 64, 1)])
def test_iterations_are_rounded_up(epochs: float, images: int, batch: int, expected: int) -> None:
    assert config.iterations(epochs, images, batch) == expected
