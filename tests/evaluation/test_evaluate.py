"""What a config evaluates on; the tests of `lift-det eval` evaluate models."""

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


def test_yacs_gets_the_evaluator_of_its_data_set():
    dataloader = evaluation_config(yacs("lvis_v1_val")).dataloader
    assert dataloader.evaluator._target_ is LVISEvaluator and dataloader.evaluator.dataset_name == "lvis_v1_val"
    assert dataloader.test.dataset.names == "lvis_v1_val" and dataloader.test.mapper.is_train is False
    assert evaluation_config(yacs("coco_2017_val")).dataloader.evaluator._target_ is COCOEvaluator


def test_configs_without_a_detectors_evaluation():
    with pytest.raises(ValueError, match="coco_2017_val.*lvis_v1_val"):
        evaluation_config(yacs("coco_2017_val", "lvis_v1_val"))
    with pytest.raises(ValueError, match=r"dataloader\.test"):
        evaluation_config(OmegaConf.create({"model": {}}))
    with pytest.raises(ValueError, match="ReconstructionEvaluator.*--recorded"):
        evaluation_config(model_zoo.get_config("quick_schedules/lift_synthetic_cpu.py"))


def test_name_of_the_data_set():
    for dataset in ({"names": "mine", "json_file": "a, b"}, {"names": ["a", "b"]}, {"root": "a, b"}):
        assert evaluated_dataset(OmegaConf.create({"dataloader": {"test": {"dataset": dataset}}})) == "a, b"
    assert evaluated_dataset(yacs("coco_2017_val")) == "coco_2017_val"
    assert evaluated_dataset(OmegaConf.create({"model": {}})) is None
