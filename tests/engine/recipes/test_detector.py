"""A config for one's own data: classes, schedules and learning rates."""

from types import SimpleNamespace

import pytest
from detectron2.config import instantiate
from omegaconf import OmegaConf

from lift_det import model_zoo
from lift_det.config import apply_overrides
from lift_det.engine.recipes import use_dataset
from lift_det.engine.recipes.detector import fit_classes, fit_schedule

SMALL = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
COCO = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"


def own(classes: int = 5, masks: str = "polygon") -> SimpleNamespace:
    categories = {7 * i + 3: f"c{i}" for i in range(classes)}
    return SimpleNamespace(json_file="mine.json", image_root="images", categories=categories, masks=masks)


def class_counts(node) -> set:
    """Every num_classes of a model, references resolved."""
    values = OmegaConf.to_container(node, resolve=True)

    def walk(value):
        if isinstance(value, dict):
            yield from (v for k, v in value.items() if k == "num_classes")
        if isinstance(value, (dict, list)):
            for child in value.values() if isinstance(value, dict) else value:
                yield from walk(child)

    return set(walk(values))


@pytest.mark.parametrize("name", [SMALL, COCO, "COCO/cascade_mask_rcnn_lift_vitdet_b_100ep.py"])
def test_every_class_count_is_set(name: str) -> None:
    cfg = model_zoo.get_config(name)
    if name == SMALL:  # one that is no reference to another
        cfg.model.roi_heads.mask_head.num_classes = 80
    assert class_counts(cfg.model) != {3}
    fit_classes(cfg, own(3))
    assert class_counts(cfg.model) == {3}
    if name == SMALL:
        heads = instantiate(cfg.model).roi_heads
        assert heads.box_predictor.cls_score.out_features == 4
        assert heads.mask_head.predictor.out_channels == 3


def test_a_checkpoint_with_other_classes_may_fill_the_heads_in_part() -> None:
    cfg = model_zoo.get_config(COCO)
    fit_classes(cfg, own(5))
    assert list(cfg.model.ignore_mismatch) == ["roi_heads"]
    same = model_zoo.get_config(COCO)
    fit_classes(same, own(80))
    assert list(same.model.ignore_mismatch) == []


def test_masks_of_the_data() -> None:
    cfg = model_zoo.get_config(SMALL)
    fit_classes(cfg, own(masks="none"))
    model = instantiate(cfg.model)
    assert not model.roi_heads.mask_on and not hasattr(model.roi_heads, "mask_head")
    mapper = instantiate(cfg.dataloader.train.mapper)
    assert not mapper.use_instance_mask and not mapper.recompute_boxes
    cfg = model_zoo.get_config(SMALL)
    fit_classes(cfg, own(masks="bitmask"))
    assert instantiate(cfg.dataloader.train.mapper).instance_mask_format == "bitmask"


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        fit_classes(model_zoo.get_config("LiFT/lift_vits14_cpu.py"), own())


def test_epochs_learning_rate_and_steps_scale() -> None:
    cfg = model_zoo.get_config(COCO)  # 184375 iterations of 64 images, 100 epochs of 118000
    lines = " | ".join(fit_schedule(cfg, 5000, batch_size=8))
    assert cfg.train.max_iter == 62500 and "100 epochs" in lines and "8 / 64" in lines
    assert cfg.optimizer.lr == pytest.approx(1e-4 / 8)
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(i / 62500) for i in range(62500)]
    assert [i for i in range(300, 62500) if rates[i] < rates[i - 1]] == [55556, 60186]  # 8/9 and 26/27
    assert cfg.lr_multiplier.warmup_length * 62500 == pytest.approx(250)
    assert cfg.dataloader.train.total_batch_size == 8
    assert cfg.train.eval_period == cfg.train.checkpointer.period == 5000


def test_few_images_get_a_least_number_of_iterations() -> None:
    cfg = model_zoo.get_config(COCO)
    fit_schedule(cfg, 20, batch_size=4)  # 100 epochs would be 500
    assert (cfg.train.max_iter, cfg.train.epochs, cfg.train.eval_period) == (1000, 200, 100)
    assert cfg.lr_multiplier.warmup_length == pytest.approx(0.1)
    short = model_zoo.get_config(SMALL)  # whose own 700 are fewer
    fit_schedule(short, 20)
    assert short.train.max_iter == 700


@pytest.mark.parametrize(("length", "iterations"), [({"epochs": 2}, 10), ({"iterations": 33}, 33)])
def test_length_and_learning_rate_can_be_given(length: dict, iterations: int) -> None:
    cfg = model_zoo.get_config(COCO)
    fit_schedule(cfg, 40, batch_size=8, learning_rate=3e-3, **length)
    assert (cfg.train.max_iter, cfg.optimizer.lr) == (iterations, 3e-3)
    # of epochs it still follows
    longer = apply_overrides(cfg, ["dataloader.train.total_batch_size=4"])
    assert longer.train.max_iter == (20 if "epochs" in length else 33)


@pytest.mark.parametrize(
    ("iterations", "rates"),
    [
        (1, [1]),
        (10, [0.001, *[1] * 8, 0.1]),  # one iteration is the warm-up
        (54, [0.001] + [0.2008, 0.4006, 0.6004, 0.8002] + [1] * 43 + [0.1] * 4 + [0.01] * 2),
    ],
)
def test_short_trainings(iterations: int, rates: list[float]) -> None:
    cfg = model_zoo.get_config(COCO)  # steps at 8/9 and 26/27 of it
    fit_schedule(cfg, 40, iterations=iterations)
    multiplier = instantiate(cfg.lr_multiplier)
    assert [multiplier(i / iterations) for i in range(iterations)] == pytest.approx(rates, rel=1e-3)


def test_wrong_numbers_are_refused() -> None:
    for wrong in ({"epochs": 1, "iterations": 1}, {"batch_size": 0}, {"epochs": -1.0}):
        with pytest.raises(ValueError):
            fit_schedule(model_zoo.get_config(SMALL), 20, **wrong)


def test_a_config_that_states_iterations_needs_a_length() -> None:
    cfg = model_zoo.get_config(COCO)
    cfg.train.max_iter = 5000
    with pytest.raises(ValueError, match="epochs or iterations"):
        fit_schedule(cfg, 20)
    fit_schedule(cfg, 20, epochs=64)
    assert cfg.train.max_iter == 20


def test_the_config_has_its_data_set() -> None:
    cfg = model_zoo.get_config(COCO)
    for split, filter_empty in (("train", True), ("test", False)):
        use_dataset(cfg, split, own(2))
        dataset = cfg.dataloader[split].dataset
        assert dataset.filter_empty is filter_empty
        assert (dataset.json_file, dataset.image_root) == ("mine.json", "images")
        assert (list(dataset.thing_classes), list(dataset.category_ids)) == (["c0", "c1"], [3, 10])
    assert cfg.dataloader.evaluator.dataset_name == "mine.json"
