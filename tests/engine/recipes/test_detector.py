"""A config for one's own data: classes, schedules and learning rates."""

import re
from types import SimpleNamespace

import pytest
from detectron2.config import instantiate
from omegaconf import OmegaConf

from lift_det import model_zoo
from lift_det.config import apply_overrides
from lift_det.engine.recipes.detector import fit_classes, fit_schedule

SMALL = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
COCO = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"


def own(classes=5, masks="polygon"):
    categories = {7 * i + 3: f"c{i}" for i in range(classes)}
    return SimpleNamespace(json_file="mine.json", image_root="images", categories=categories, masks=masks)


def class_counts(node):
    """Every num_classes of a model, references resolved."""
    return set(map(int, re.findall(r"'num_classes': (\d+)", str(OmegaConf.to_container(node, resolve=True)))))


@pytest.mark.parametrize("name", [SMALL, COCO, "COCO/cascade_mask_rcnn_lift_vitdet_b_100ep.py"])
def test_every_class_count_is_set(name):
    cfg = model_zoo.get_config(name)
    if name == SMALL:  # one that is no reference to another
        cfg.model.roi_heads.mask_head.num_classes = 80
    fit_classes(cfg, own(3))
    assert class_counts(cfg.model) == {3}
    # a checkpoint with other classes may fill the heads in part
    assert list(cfg.model.ignore_mismatch) == (["roi_heads"] if cfg.train.init_checkpoint else [])


def test_masks_of_the_data():
    cfg = model_zoo.get_config(SMALL)
    fit_classes(cfg, own(masks="none"))
    model, mapper = instantiate(cfg.model), instantiate(cfg.dataloader.train.mapper)
    assert not model.roi_heads.mask_on and not hasattr(model.roi_heads, "mask_head")
    assert not mapper.use_instance_mask and not mapper.recompute_boxes
    cfg = model_zoo.get_config(SMALL)
    fit_classes(cfg, own(masks="bitmask"))
    assert instantiate(cfg.dataloader.train.mapper).instance_mask_format == "bitmask"


def test_epochs_learning_rate_and_steps_scale():
    cfg = model_zoo.get_config(COCO)  # 184375 iterations of 64 images, 100 epochs of 118000
    fit_schedule(cfg, 5000, batch_size=8)
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (62500, 8)
    assert cfg.optimizer.lr == pytest.approx(1e-4 / 8)
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(i / 62500) for i in range(62500)]
    assert [i for i in range(300, 62500) if rates[i] < rates[i - 1]] == [55556, 60186]  # 8/9 and 26/27
    assert cfg.lr_multiplier.warmup_length * 62500 == pytest.approx(250)
    assert cfg.train.eval_period == cfg.train.checkpointer.period == 5000


@pytest.mark.parametrize(
    ("name", "num_images", "options", "iterations", "rate"),
    [
        (COCO, 20, {"batch_size": 4}, 1000, 1e-4 / 16),  # 100 epochs would be 500
        (SMALL, 20, {}, 700, 1e-3),  # fewer than 1000 in the config
        (COCO, 40, {"batch_size": 8, "epochs": 2, "learning_rate": 3e-3}, 10, 3e-3),
        (COCO, 40, {"batch_size": 8, "iterations": 33, "learning_rate": 3e-3}, 33, 3e-3),
    ],
)
def test_lengths_and_learning_rates(name, num_images, options, iterations, rate):
    cfg = model_zoo.get_config(name)
    fit_schedule(cfg, num_images, **options)
    assert cfg.train.max_iter == iterations and cfg.optimizer.lr == pytest.approx(rate)
    assert cfg.train.eval_period == iterations // 10 and cfg.lr_multiplier.warmup_length <= 0.1
    # overrides change a length in epochs
    longer = apply_overrides(cfg, ["dataloader.train.total_batch_size=2"]).train.max_iter
    assert (longer == iterations) is ("iterations" in options)


@pytest.mark.parametrize(
    ("iterations", "rates"),
    [
        (10, [0.001, *[1] * 8, 0.1]),  # one iteration is the warm-up
        (54, [0.001] + [0.2008, 0.4006, 0.6004, 0.8002] + [1] * 43 + [0.1] * 4 + [0.01] * 2),
    ],
)
def test_short_trainings(iterations, rates):
    cfg = model_zoo.get_config(COCO)  # steps at 8/9 and 26/27 of it
    fit_schedule(cfg, 40, iterations=iterations)
    multiplier = instantiate(cfg.lr_multiplier)
    assert [multiplier(i / iterations) for i in range(iterations)] == pytest.approx(rates, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"epochs": 1, "iterations": 1}, {"batch_size": 0}, {"epochs": -1.0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError):
        fit_schedule(model_zoo.get_config(SMALL), 20, **wrong)


def test_configs_without_classes_or_epochs():
    with pytest.raises(ValueError, match="num_classes"):
        fit_classes(model_zoo.get_config("LiFT/lift_vits14_cpu.py"), own())
    cfg = model_zoo.get_config(COCO)
    cfg.train.max_iter = 5000
    with pytest.raises(ValueError, match="epochs"):
        fit_schedule(cfg, 20)
    fit_schedule(cfg, 20, epochs=64)
    assert cfg.train.max_iter == 20
