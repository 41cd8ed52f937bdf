"""What a config says of its evaluation; `lift-det eval`'s tests evaluate."""

import pytest
from detectron2.config import get_cfg
from omegaconf import OmegaConf

from lift_det import add_lift_config, model_zoo
from lift_det.evaluation import COCOEvaluator, LVISEvaluator, evaluated_dataset, evaluation_config


def yacs(*names):
    cfg = get_cfg()
    add_lift_config(cfg)
    cfg.DATASETS.TEST = names
    return cfg


def test_a_lazy_config_is_given_back():
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    assert evaluation_config(cfg) is cfg
    assert evaluated_dataset(cfg) == "coco_2017_val"


@pytest.mark.parametrize(
    ("name", "evaluator"), [("coco_2017_val", COCOEvaluator), ("lvis_v1_val", LVISEvaluator)], ids=["coco", "lvis"]
)
def test_yacs_gets_the_evaluator_of_its_data(name, evaluator):
    dataloader = evaluation_config(yacs(name)).dataloader
    assert dataloader.evaluator._target_ is evaluator and dataloader.evaluator.dataset_name == name
    assert dataloader.test.dataset.names == name and dataloader.test.mapper.is_train is False
    assert evaluated_dataset(yacs(name)) == name


def test_configs_without_an_evaluation_are_refused():
    with pytest.raises(ValueError, match="expected one data set"):
        evaluation_config(yacs("coco_2017_val", "lvis_v1_val"))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluation_config(OmegaConf.create({"model": {}}))
    with pytest.raises(ValueError, match="no detector"):
        evaluation_config(model_zoo.get_config("quick_schedules/lift_synthetic_cpu.py"))


def test_names_of_data():
    def name(**dataset):
        return evaluated_dataset(OmegaConf.create({"dataloader": {"test": {"dataset": dataset}}}))

    assert name(names="mine", json_file="/data/val.json") == "/data/val.json"
    assert name(names=["a", "b"]) == "a, b"
    assert name(root="photos") == "photos"
    assert evaluated_dataset(OmegaConf.create({"model": {}})) is None
