"""A config on one's own data: every class count, schedules and learning rates by the rules that are said."""

import math

import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from omegaconf import OmegaConf

from lift_det import model_zoo
from lift_det.config import apply_overrides
from lift_det.engine.recipes.detector import fit_classes, fit_schedule
from lift_det.engine.recipes.own_data import OwnCoco, use_dataset

SMALL = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
COCO = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"


def own(classes: int = 5, masks: str = "polygon") -> OwnCoco:
    return OwnCoco("mine", "mine.json", "images", {7 * i + 3: f"c{i}" for i in range(classes)}, 15, masks)


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
    assert class_counts(cfg.model) != {5}
    fit_classes(cfg, own(5))
    assert class_counts(cfg.model) == {5}


def test_a_count_that_refers_to_no_other_is_found() -> None:
    cfg = model_zoo.get_config(SMALL)
    cfg.model.roi_heads.mask_head.num_classes = 80
    said = fit_classes(cfg, own(5))
    assert class_counts(cfg.model) == {5}
    assert "model.roi_heads.mask_head.num_classes" in said[0]


def test_the_model_has_layers_of_that_size() -> None:
    cfg = model_zoo.get_config(SMALL)
    fit_classes(cfg, own(3))
    heads = instantiate(cfg.model).roi_heads
    assert heads.box_predictor.cls_score.out_features == 4
    assert heads.mask_head.predictor.out_channels == 3


def test_a_checkpoint_of_other_classes_may_fill_the_heads_in_part() -> None:
    cfg = model_zoo.get_config(COCO)
    fit_classes(cfg, own(5))
    assert list(cfg.model.allow_partial) == ["roi_heads"]
    same = model_zoo.get_config(COCO)
    fit_classes(same, own(80))
    assert list(same.model.allow_partial) == []


def test_boxes_alone_leave_the_mask_head_out() -> None:
    cfg = model_zoo.get_config(SMALL)
    said = fit_classes(cfg, own(masks="none"))
    assert any("no mask head" in line for line in said)
    model = instantiate(cfg.model)
    assert not model.roi_heads.mask_on and not hasattr(model.roi_heads, "mask_head")
    mapper = instantiate(cfg.dataloader.train.mapper)
    assert not mapper.use_instance_mask and not mapper.recompute_boxes


def test_rle_masks_are_read_as_bitmasks() -> None:
    cfg = model_zoo.get_config(SMALL)
    fit_classes(cfg, own(masks="bitmask"))
    assert instantiate(cfg.dataloader.train.mapper).instance_mask_format == "bitmask"


def test_a_model_without_classes_is_refused() -> None:
    cfg = model_zoo.get_config("LiFT/lift_vits14_cpu.py")
    with pytest.raises(ValueError, match="num_classes"):
        fit_classes(cfg, own())


def test_epochs_learning_rate_and_steps_scale() -> None:
    cfg = model_zoo.get_config(COCO)  # 184375 iterations of 64 images, 100 epochs of 118000
    said = " | ".join(fit_schedule(cfg, 5000, batch_size=8))
    assert cfg.train.max_iter == 62500 and "100 epochs" in said
    assert cfg.optimizer.lr == pytest.approx(1e-4 / 8) and "1e-04 × 8 / 64" in said.replace("0.0001", "1e-04")
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(i / 62500) for i in range(62500)]
    steps = [i for i in range(300, 62500) if rates[i] < rates[i - 1]]
    assert steps == [math.ceil(m * 62500 / 184375) for m in (163889, 177546)] == [55556, 60186]
    assert f"steps of the learning rate at {steps}" in said
    assert cfg.lr_multiplier.warmup_length * 62500 == pytest.approx(250)
    assert cfg.dataloader.train.total_batch_size == 8
    assert cfg.train.eval_period == cfg.train.checkpointer.period == 5000


def test_few_images_get_a_least_number_of_iterations() -> None:
    cfg = model_zoo.get_config(COCO)
    said = fit_schedule(cfg, 20, batch_size=4)  # 100 epochs would be 500
    assert cfg.train.max_iter == 1000 and any("at least 1000" in line for line in said)
    assert cfg.lr_multiplier.warmup_length == pytest.approx(0.1)
    assert cfg.train.eval_period == 100

    short = model_zoo.get_config(SMALL)  # whose own 700 are fewer than that
    fit_schedule(short, 20)
    assert short.train.max_iter == 700


@pytest.mark.parametrize(("given", "iterations"), [({"epochs": 2}, 10), ({"iterations": 33}, 33)])
def test_the_length_can_be_said(given: dict, iterations: int) -> None:
    cfg = model_zoo.get_config(COCO)
    fit_schedule(cfg, 40, batch_size=8, learning_rate=3e-3, **given)
    assert cfg.train.max_iter == iterations
    assert cfg.optimizer.lr == 3e-3


@pytest.mark.parametrize(
    ("iterations", "rates", "steps"),
    [
        (1, [1], "no steps of the learning rate"),
        (2, [1, 1], "no steps of the learning rate"),
        (10, [0.001, *[1] * 8, 0.1], "steps of the learning rate at [9]"),  # one iteration is the warm-up
        (54, [0.001] + [0.2008, 0.4006, 0.6004, 0.8002] + [1] * 43 + [0.1] * 4 + [0.01] * 2, "rate at [48, 52]"),
    ],
)
def test_a_short_training_has_the_steps_that_it_has_room_for(iterations, rates, steps) -> None:
    cfg = model_zoo.get_config(COCO)  # steps at 8/9 and 26/27 of it
    said = fit_schedule(cfg, 40, iterations=iterations)
    multiplier = instantiate(cfg.lr_multiplier)
    assert [multiplier(i / iterations) for i in range(iterations)] == pytest.approx(rates, rel=1e-3)
    assert any(steps in line for line in said)


def test_wrong_numbers_are_refused() -> None:
    for wrong in ({"epochs": 1, "iterations": 1}, {"batch_size": 0}, {"epochs": -1.0}):
        with pytest.raises(ValueError):
            fit_schedule(model_zoo.get_config(SMALL), 20, **wrong)


def test_a_config_of_unknown_data_wants_its_length_said() -> None:
    cfg = model_zoo.get_config(COCO)
    cfg.dataloader.train.dataset.names = "someones_train"
    cfg.train.max_iter = 5000  # in place of epochs
    del cfg.train.epochs, cfg.train.epoch_images
    with pytest.raises(ValueError, match="someones_train"):
        fit_schedule(cfg, 20)
    fit_schedule(cfg, 20, iterations=100)


def test_the_config_holds_all_that_its_data_takes() -> None:
    cfg = model_zoo.get_config(COCO)
    use_dataset(cfg, "train", own(2))
    use_dataset(cfg, "test", own(2))
    for split, filter_empty in (("train", True), ("test", False)):
        dataset = cfg.dataloader[split].dataset
        assert dataset.filter_empty is filter_empty
        assert (dataset.json_file, dataset.image_root) == ("mine.json", "images")
        assert (list(dataset.thing_classes), list(dataset.category_ids)) == (["c0", "c1"], [3, 10])
    assert cfg.dataloader.evaluator.dataset_name == "mine"


def test_epochs_and_batch_can_still_be_overridden() -> None:
    cfg = model_zoo.get_config(COCO)
    fit_schedule(cfg, 500, batch_size=4, epochs=40)
    assert cfg.train.max_iter == 5000
    assert apply_overrides(cfg, ["train.epochs=3"]).train.max_iter == 375
    assert apply_overrides(cfg, ["dataloader.train.total_batch_size=8"]).train.max_iter == 188
    cfg = model_zoo.get_config(COCO)
    fit_schedule(cfg, 500, batch_size=4, iterations=33)
    assert apply_overrides(cfg, ["dataloader.train.total_batch_size=8"]).train.max_iter == 33


def test_a_config_that_states_iterations_on_its_own_data_counts_those_images() -> None:
    DatasetCatalog.register("test_own_images", lambda: [{}] * 1000)
    try:
        cfg = model_zoo.get_config(COCO)
        cfg.dataloader.train.dataset.names = "test_own_images"
        cfg.dataloader.train.total_batch_size, cfg.train.max_iter = 16, 9000
        fit_schedule(cfg, 500)
        assert cfg.train.max_iter == 4500  # 144 epochs
    finally:
        DatasetCatalog.remove("test_own_images")
