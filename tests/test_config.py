"""Configs by name or path with overrides, lengths from epochs, and configs of earlier versions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode, LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf

from lift_det import BilinearUpsample, LiFT, LiFTPlus, config, model_zoo

ROOT = Path(__file__).resolve().parents[1]
LAZY = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
YACS = "quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml"
COCO = "COCO/mask_rcnn_lift_vitdet_b_100ep"


@pytest.mark.parametrize("name", [LAZY, LAZY.removesuffix(".py"), Path(LAZY), str(ROOT / "configs" / LAZY)])
def test_a_lazy_config_by_name_or_path(name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # from any folder
    assert config.load(name).train.output_dir == "./output/mask_rcnn_synthetic"
    assert config.find_config(name) == str(ROOT / "configs" / LAZY)


def test_a_file_comes_before_a_shipped_config_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick_schedules").mkdir()
    (tmp_path / LAZY).write_text("train = dict(max_iter=7)\n")
    assert config.load(LAZY).train == {"max_iter": 7}
    assert model_zoo.get_config(LAZY).train.max_iter == 700  # the model zoo has only shipped ones


def test_yaml_files_of_both_kinds(tmp_path: Path) -> None:
    """A training of either kind leaves a config.yaml."""
    path = tmp_path / "config.yaml"
    path.write_text(config.load(YACS).dump())
    again = config.load(path)
    assert isinstance(again, CfgNode) and again.MODEL.VIT == config.load(YACS).MODEL.VIT
    path.write_text("SOLVER:\n  MAX_ITER: 9\n")
    assert config.load(path).SOLVER.MAX_ITER == 9
    LazyConfig.save(config.load(LAZY), str(path))
    assert isinstance(config.load(path), DictConfig)
    path.write_text("MODEL:\n  LIFT:\n    POOL: 3\n")
    with pytest.raises(ValueError, match="config.yaml.*MODEL.LIFT.POOL"):
        config.load(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="config.yaml"):
        config.load(path)


def test_overrides() -> None:
    cfg = config.load(LAZY, ["train.max_iter=3", "model.backbone.lift.checkpoint=a/b.pth", "train.hooks=[]"])
    assert (cfg.train.max_iter, cfg.model.backbone.lift.checkpoint, list(cfg.train.hooks)) == (3, "a/b.pth", [])
    # both of detectron2's ways for yacs
    for overrides in (
        ["SOLVER.MAX_ITER=9", "MODEL.LIFT.CHECKPOINT=a=b.pth", "MODEL.SIMPLE_FPN.LEVEL_STRIDES=[8, 16]"],
        ["SOLVER.MAX_ITER", "9", "MODEL.LIFT.CHECKPOINT", "a=b.pth", "MODEL.SIMPLE_FPN.LEVEL_STRIDES", "[8, 16]"],
    ):
        cfg = config.load(YACS, overrides)
        assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.LIFT.CHECKPOINT) == (9, "a=b.pth")
        assert cfg.MODEL.SIMPLE_FPN.LEVEL_STRIDES == [8, 16]
    assert config.load(YACS).SOLVER.MAX_ITER == 4  # each load gives a new config


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
    ],
)
def test_an_override_that_cannot_be_applied(name: str, override: str) -> None:
    with pytest.raises(config.OverrideError, match=re.escape(override)):
        config.load(name, [override])


EARLIER = """
model:
  _target_: lift_det.LiFTFeaturePyramid
  allow_lift: [backbone]
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
PLUS = {"network": "paper", "attention_kernel": 5, "standardize": False, "preserve_norm": False}


@pytest.mark.parametrize(
    ("input_scale", "lift", "scale_factors", "kind", "settings"),
    [
        (1.0, LIFT.format("false", "paper", "false", 0, "false"), [1.0, 0.5, 0.25, 0.125], LiFT, {"residual": False}),
        (0.5, LIFT.format("true", "paper", "false", 0, "true"), [2.0, 1.0, 0.5, 0.25], LiFT, {"preserve_norm": True}),
        (0.5, LIFT.format("true", "trunk", "true", 3, "true"), [2.0, 1.0, 0.5, 0.25], LiFTPlus, {"network": "trunk"}),
        (0.5, LIFT.format("false", "paper", "false", 5, "true"), [2.0, 1.0, 0.5, 0.25], LiFTPlus, PLUS),
        (1.0, "{_target_: lift_det.BilinearUpsample}", [1.0, 0.5, 0.25, 0.125], BilinearUpsample, {}),
        (1.0, "null", [2.0, 1.0, 0.5, 0.25], type(None), {}),
    ],
)
def test_a_config_of_the_first_version_is_read(input_scale, lift, scale_factors, kind, settings, tmp_path) -> None:
    """LiFT was one class with a key for each of its kinds, and the pyramid had scale factors."""
    path = tmp_path / "config.yaml"
    path.write_text(EARLIER.format(input_scale=input_scale, lift=lift, scale_factors=scale_factors))
    pyramid = instantiate(config.load(path).model)
    assert [shape.stride for shape in pyramid.output_shape().values()] == [4, 8, 16, 32]
    assert type(pyramid.lift) is kind
    assert settings.items() <= (pyramid.lift.settings() if pyramid.lift is not None else {}).items()


@pytest.mark.parametrize(
    ("target", "renamed"),
    [
        ("LiFT", {"keep_length": "preserve_norm", "norm": "norm"}),
        ("LiFTPlus", {"keep_length": "preserve_norm", "normalize": "standardize", "pool": "attention_kernel"}),
        ("modeling.LazyUpsampler", {"name": "name", "pool": "attention_kernel"}),
        ("FeatureExtractor", {"norm": "final_norm", "allow_lift": "ignore_mismatch"}),
        ("engine.LiFTPretraining", {"norm": "final_norm", "freeze_norm": "freeze_batchnorm"}),
        ("TimmViT", {"norm": "final_norm", "allow_unexpected": "ignore_unexpected"}),
        ("LiFTFeaturePyramid", {"norm": "norm", "allow_lift": "ignore_mismatch"}),
        ("modeling.GeneralizedRCNN", {"allow_partial": "ignore_mismatch"}),
    ],
)
def test_renamed_arguments(target: str, renamed: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    values = {name: [i] for i, name in enumerate(renamed)}
    removed = {"mirror": False} if target.endswith("LiFTPretraining") else {}
    path.write_text(OmegaConf.to_yaml({"model": [{"part": {"_target_": f"lift_det.{target}", **values, **removed}}]}))
    part = OmegaConf.to_container(config.load(path).model[0].part)
    assert part.pop("_target_") == f"lift_det.{target}".replace("engine", "modeling")
    assert part == {new: values[old] for old, new in renamed.items()}


def test_a_yacs_config_of_an_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("MODEL:\n  VIT:\n    NORM: false\n  LIFT:\n    ALLOW_PARTIAL: [roi_heads]\n")
    cfg = config.load(tmp_path / "config.yaml")
    assert cfg.MODEL.VIT.FINAL_NORM is False and "NORM" not in cfg.MODEL.VIT
    assert cfg.MODEL.IGNORE_MISMATCH == ["roi_heads"]


@pytest.mark.parametrize(
    ("overrides", "iterations"),
    [
        ([], 184375),
        (["train.epochs=50"], 92188),  # 92187.5
        (["dataloader.train.total_batch_size=16", "train.epochs=12"], 88500),
        (["train.epoch_images=64"], 100),
        (["train.max_iter=5"], 5),
    ],
)
def test_a_key_changes_the_length_and_the_steps_keep_their_shares(overrides: list[str], iterations: int) -> None:
    cfg = config.load(COCO, overrides)
    assert cfg.train.max_iter == iterations
    multiplier = instantiate(cfg.lr_multiplier)
    for share, before, after in ((8 / 9, 1.0, 0.1), (26 / 27, 0.1, 0.01)):
        assert multiplier(share - 1e-5) == before and multiplier(share + 1e-5) == after


def test_a_saved_config_still_follows_its_keys(tmp_path: Path) -> None:
    """Also in detectron2's own tool, which does not import lift_det and saves the config before it builds anything."""
    path, again = tmp_path / "config.yaml", tmp_path / "again.yaml"
    LazyConfig.save(config.load(COCO, ["train.epochs=50"]), str(path))
    source = f"from detectron2.config import LazyConfig as c; c.save(c.load({str(path)!r}), {str(again)!r})"
    subprocess.run([sys.executable, "-c", source], check=True, cwd=ROOT)
    assert config.load(again).train.max_iter == 92188
    assert config.load(again, ["train.epochs=25"]).train.max_iter == 46094


@pytest.mark.parametrize(
    ("name", "iterations"),
    [
        ("COCO/mask_rcnn_lift_vitdet_h_75ep", 138282),
        ("COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu", 354000),
        ("LiFT/lift_dino_vits16", 18438),
        ("LiFT/lift_vits14_cpu", 7000),
        ("quick_schedules/mask_rcnn_lift_dinov2_vits14_320", 59000),
    ],
)
def test_lengths_of_shipped_configs(name: str, iterations: int) -> None:
    assert config.load(name).train.max_iter == iterations
