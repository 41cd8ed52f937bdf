"""`lift-det eval` and `lift-det plot` on output folders of tiny untrained models."""

import json
import math

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lift_det import cli, model_zoo
from lift_det.data import write_synthetic_coco
from tests.engine.tiny_detector import tiny_config, write_output_folder

CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
DATA = "test_eval_val"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotations and images, registered."""
    root = write_synthetic_coco(tmp_path_factory.mktemp("datasets"), num_train=1, num_val=4)
    json_file = root / "annotations" / "instances_val.json"
    register_coco_instances(DATA, {}, str(json_file), str(root / "val"))
    DatasetCatalog.get(DATA)  # sets the class names
    yield json_file, root / "val"
    DatasetCatalog.remove(DATA)
    MetadataCatalog.remove(DATA)


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Two output folders: config.yaml, model_final.pth, metrics.json."""
    cfg = tiny_config()
    cfg.dataloader.test.dataset.names = DATA
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 300  # so many that a few are right
    cfg.model.roi_heads.mask_head.conv_dims = [16]
    cfg.model.proposal_generator.update(pre_nms_topk=[400, 4000], post_nms_topk=[200, 1000])
    root = tmp_path_factory.mktemp("output")
    folders = [write_output_folder(root / name, cfg, seed) for seed, name in enumerate(("first", "second"))]
    for seed, folder in enumerate(folders):
        lines = [{"iteration": i, "total_loss": 1.0, "lr": 0.1} for i in (19, 39)]
        lines.append({"iteration": 40, "bbox/AP": 10.0 + seed, "bbox/AP-circle": 20.0, "segm/AP": 5.0})
        (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folders


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def read(path):
    return json.loads(path.read_text())


def test_figures_are_those_of_detectron2(folders, data, capsys):
    folder = folders[0]
    assert run("eval", folder, "--device", "cpu") == 0
    content, printed = read(folder / "inference" / "evaluation.json"), capsys.readouterr().out
    cfg = LazyConfig.load(str(folder / "config.yaml"))
    model = instantiate(cfg.model)
    model.load_state_dict(torch.load(folder / "model_final.pth")["model"])
    expected = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    assert content["figures"].keys() == expected.keys() == {"bbox", "segm"}
    for task, figures in expected.items():
        found = {name: math.nan if value is None else value for name, value in content["figures"][task].items()}
        assert found == pytest.approx(dict(figures), abs=1e-9, nan_ok=True)
    assert expected["bbox"]["AP50"] > 0

    annotations = read(data[0])
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    objects = [names[annotation["category_id"]] for annotation in annotations["annotations"]]
    assert content["objects"] == {name: objects.count(name) for name in names.values()}
    assert (content["num_images"], content["dataset"]) == (4, DATA)
    assert content["weights"] == str(folder / "model_final.pth")
    assert f"| boxes | {expected['bbox']['AP']:.1f}" in " ".join(printed.split())
    assert all(name in printed for name in names.values())


def test_yacs_config_and_weights(data, tmp_path):
    cfg = model_zoo.get_config(CONFIG.replace(".py", ".yaml"))
    cfg.DATASETS.TEST = (DATA,)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 200, 300
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        head.NUM_CONV, head.CONV_DIM = 1, 16
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    named = ("--config-file", tmp_path / "config.yaml", "--weights", tmp_path / "weights.pth")
    assert run("eval", *named, "--device", "cpu") == 0
    figures = read(tmp_path / "inference" / "evaluation.json")["figures"]
    loader, evaluator = build_detection_test_loader(cfg, DATA), COCOEvaluator(DATA, use_fast_impl=False)
    expected = inference_on_dataset(model, loader, evaluator)
    assert figures["bbox"]["AP50"] == pytest.approx(expected["bbox"]["AP50"]) != 0
    assert figures["segm"]["AP50"] == pytest.approx(expected["segm"]["AP50"])


def test_two_folders_side_by_side_with_an_override(folders, tmp_path, capsys):
    assert run("eval", *folders, "dataloader.evaluator.tasks=[bbox]", "--device", "cpu", "--output", tmp_path) == 0
    names = {"comparison.json", "comparison.md", "first", "second"}
    assert {path.name for path in tmp_path.iterdir()} == names
    results = read(tmp_path / "comparison.json")["results"]
    for result in results:
        assert read(tmp_path / result["name"] / "evaluation.json")["figures"] == result["figures"]
        assert result["figures"].keys() == {"bbox"}
    first, second = (result["figures"]["bbox"]["AP50"] for result in results)
    assert first != second
    text = (tmp_path / "comparison.md").read_text()
    assert f"{second:.1f} ({second - first:+.1f})" in text and text.rstrip() in capsys.readouterr().out


def test_another_data_set(folders, data, tmp_path, capsys):
    """Without masks and with fewer objects: the figures are pycocotools'. With other classes: refused."""
    content, path = read(data[0]), tmp_path / "my_test.json"
    content["annotations"] = content["annotations"][:-2]
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    arguments = ("eval", folders[0], "--dataset", f"{path}:{data[1]}", "--device", "cpu")
    assert run(*arguments) == 0
    output = folders[0] / "inference_my_test"
    found, truth = read(output / "evaluation.json"), COCO(path)
    expected = COCOeval(truth, truth.loadRes(str(output / "coco_instances_results.json")), "bbox")
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    assert (found["num_images"], found["dataset"], list(found["figures"])) == (4, str(path), ["bbox"])
    assert found["figures"]["bbox"]["AP50"] == pytest.approx(100 * expected.stats[1]) != 0
    assert sum(found["objects"].values()) == len(content["annotations"])

    content["categories"][0]["name"] = "hexagon"
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert run(*arguments, "--output", tmp_path / "out") == 1
    printed = "".join(capsys.readouterr())
    assert "hexagon" in printed and "circle" in printed
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_recorded_figures(folders, tmp_path, capsys):
    assert run("eval", *folders, "--recorded", "--output", tmp_path) == 0
    assert "10.0 | 11.0 (+1.0)" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "comparison.md"}
    assert run("eval", folders[0], "--recorded") == 0
    assert f"first: {DATA}, iteration 40" in capsys.readouterr().out

    # a LiFT's training has recorded figures only
    cfg = model_zoo.get_config("quick_schedules/lift_synthetic_cpu.py")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "cosine_2x/bilinear": 0.8, "cosine_2x/lift": 0.9}\n')
    assert run("eval", tmp_path) == 1
    assert "--recorded" in capsys.readouterr().err
    assert run("eval", tmp_path, "--recorded") == 0
    assert "0.9000" in capsys.readouterr().out


def test_plot(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("plot", folders[0]) == run("plot", *folders) == 0
    assert (folders[0] / "plot.png").stat().st_size > 10_000 and (tmp_path / "plot.png").stat().st_size > 10_000
