"""`lift-det eval` and `lift-det plot` on folders of trainings with tiny untrained models, and what is refused."""

import json

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from omegaconf import OmegaConf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lift_det import cli, model_zoo
from lift_det.data import write_synthetic_coco

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
DATA = "test_eval_val"
TINY = {
    "model.backbone.net.embed_dim": 32,
    "model.backbone.net.depth": 1,
    "model.backbone.net.num_heads": 2,
    "model.roi_heads.box_predictor.test_score_thresh": 0.0,  # untrained heads are sure of nothing
    "model.roi_heads.box_predictor.test_topk_per_image": 300,  # so many that a few are right
    "model.proposal_generator.pre_nms_topk": [400, 4000],
    "model.proposal_generator.post_nms_topk": [200, 1000],
    "model.roi_heads.mask_head.conv_dims": [16],
    "dataloader.test.dataset.names": DATA,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Annotations and images, registered."""
    root = tmp_path_factory.mktemp("datasets")
    write_synthetic_coco(root, num_train=1, num_val=4)
    json_file = root / "synthetic" / "annotations" / "instances_val.json"
    register_coco_instances(DATA, {}, str(json_file), str(root / "synthetic" / "val"))
    DatasetCatalog.get(DATA)  # detectron2 learns the names of the classes here
    yield json_file, root / "synthetic" / "val"
    DatasetCatalog.remove(DATA)
    MetadataCatalog.remove(DATA)


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Two trainings' output folders: config.yaml, model_final.pth, metrics.json."""
    root = tmp_path_factory.mktemp("output")
    return [_training(root / name, seed) for name, seed in (("first", 0), ("second", 1))]


def _training(folder, seed):
    folder.mkdir()
    cfg = model_zoo.get_config(CONFIG)
    for key, value in TINY.items():
        OmegaConf.update(cfg, key, value)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.manual_seed(seed)
    model = instantiate(cfg.model)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    lines = [{"iteration": i, "total_loss": 1.0, "lr": 0.1} for i in (19, 39)]
    lines.append({"iteration": 40, "bbox/AP": 10.0 + seed, "bbox/AP-circle": 20.0, "segm/AP": 5.0})
    (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_figures_are_those_of_detectron2(folders, data, capsys):
    """The config's own evaluator in detectron2's own loop gives the same figures, and some are not zero."""
    folder = folders[0]
    assert run("eval", folder, "--device", "cpu") == 0
    content = json.loads((folder / "inference" / "evaluation.json").read_text())
    printed = capsys.readouterr().out

    cfg = LazyConfig.load(str(folder / "config.yaml"))
    model = instantiate(cfg.model)
    model.load_state_dict(torch.load(folder / "model_final.pth")["model"])
    expected = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    assert content["figures"].keys() == expected.keys() == {"bbox", "segm"}
    for task, figures in expected.items():
        assert content["figures"][task].keys() == figures.keys()
        for name, value in figures.items():
            found = content["figures"][task][name]
            assert (found is None) if value != value else found == pytest.approx(value, abs=1e-9), (task, name)
    assert expected["bbox"]["AP50"] > 0

    annotations = json.loads(data[0].read_text())
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    objects = [names[annotation["category_id"]] for annotation in annotations["annotations"]]
    assert content["objects"] == {name: objects.count(name) for name in names.values()}
    assert (content["num_images"], content["dataset"]) == (4, DATA)
    assert content["weights"] == str(folder / "model_final.pth")

    assert f"| boxes | {expected['bbox']['AP']:.1f}" in " ".join(printed.split())
    assert all(name in printed for name in names.values())
    assert "Average Precision" not in printed, "COCO's own table is printed, too"


def test_a_config_and_weights_in_place_of_a_folder(folders, tmp_path):
    arguments = ("--config-file", folders[0] / "config.yaml", "--device", "cpu", "--output", tmp_path)
    assert (
        run("eval", *arguments, "--weights", folders[1] / "model_final.pth", "dataloader.evaluator.tasks=[bbox]") == 0
    )
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["weights"] == str(folders[1] / "model_final.pth")
    assert content["figures"].keys() == {"bbox"}, "the override was not applied"


def test_yacs(data, tmp_path):
    """As detectron2's own loader and evaluator have it."""
    cfg = model_zoo.get_config(CONFIG.replace(".py", ".yaml"))
    cfg.DATASETS.TEST = (DATA,)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 500, 300
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        head.NUM_CONV, head.CONV_DIM = 1, 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    assert run("eval", tmp_path, "--device", "cpu") == 0
    found = json.loads((tmp_path / "inference" / "evaluation.json").read_text())["figures"]
    loader, evaluator = build_detection_test_loader(cfg, DATA), COCOEvaluator(DATA, use_fast_impl=False)
    expected = inference_on_dataset(model, loader, evaluator)
    assert found["bbox"]["AP50"] == pytest.approx(expected["bbox"]["AP50"]) != 0
    assert found["segm"]["AP50"] == pytest.approx(expected["segm"]["AP50"])


def test_two_folders_side_by_side(folders, tmp_path, capsys):
    assert run("eval", *folders, "--device", "cpu", "--output", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.json",
        "comparison.md",
        "comparison.png",
        "first",
        "second",
    }
    results = json.loads((tmp_path / "comparison.json").read_text())["results"]
    for result in results:
        alone = json.loads((tmp_path / result["name"] / "evaluation.json").read_text())
        assert alone["figures"] == result["figures"]
    first, second = (result["figures"]["bbox"]["AP50"] for result in results)
    assert first != second
    text = (tmp_path / "comparison.md").read_text()
    assert f"{second:.1f} ({second - first:+.1f})" in text
    assert text.rstrip() in capsys.readouterr().out


def _other_annotations(data, path, change):
    """The registered annotations, changed, as --dataset takes them."""
    content = json.loads(data[0].read_text())
    change(content)
    path.write_text(json.dumps(content))
    return f"{path}:{data[1]}"


def test_another_data_set(folders, data, tmp_path):
    """Without masks, and fewer objects: the figures are pycocotools' on that file."""

    def change(content):
        content["annotations"] = content["annotations"][:-2]
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    dataset = _other_annotations(data, tmp_path / "my_test.json", change)
    assert run("eval", folders[0], "--dataset", dataset, "--device", "cpu") == 0
    content = json.loads((folders[0] / "inference_my_test" / "evaluation.json").read_text())
    assert content["num_images"] == 4 and content["figures"].keys() == {"bbox"}
    assert content["dataset"] == str(tmp_path / "my_test.json")

    results = json.loads((folders[0] / "inference_my_test" / "coco_instances_results.json").read_text())
    truth = COCO(str(tmp_path / "my_test.json"))
    expected = COCOeval(truth, truth.loadRes(results), "bbox")
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    assert content["figures"]["bbox"]["AP50"] == pytest.approx(100 * expected.stats[1]) != 0
    assert content["objects"] == {
        c["name"]: len(truth.getAnnIds(catIds=[c["id"]])) for c in truth.dataset["categories"]
    }


def test_a_data_set_of_other_classes_is_refused(folders, data, tmp_path, capsys):
    def rename(content):
        content["categories"][0]["name"] = "hexagon"

    dataset = _other_annotations(data, tmp_path / "other.json", rename)
    assert run("eval", folders[0], "--dataset", dataset, "--device", "cpu", "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "hexagon" in captured.out + captured.err and "circle" in captured.out + captured.err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_recorded_figures_need_no_evaluation(folders, tmp_path, capsys):
    assert run("eval", *folders, "--recorded", "--output", tmp_path) == 0
    assert "10.0 | 11.0 (+1.0)" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "comparison.md", "comparison.png"}
    assert run("eval", folders[0], "--recorded") == 0
    assert f"first: recorded at iteration 40, {DATA}" in capsys.readouterr().out


def test_a_lifts_training_is_not_evaluated_as_a_detector(tmp_path, capsys):
    cfg = model_zoo.get_config("quick_schedules/lift_synthetic_cpu.py")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "cosine_2x/bilinear": 0.8, "cosine_2x/lift": 0.9}\n')
    assert run("eval", tmp_path) == 1
    assert "--recorded" in capsys.readouterr().err
    assert run("eval", tmp_path, "--recorded") == 0
    assert "0.9000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name models"),
        (["a", "--config-file", "b"], "name models"),
        (["--config-file", CONFIG], "needs --weights"),
        (["a", "b", "--weights", "c"], "goes with one folder"),
        (["a", "--recorded", "--dataset", "c:d"], "evaluates nothing"),
        (["a", "x.y=1", "--recorded"], "evaluates nothing"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys):
    assert run("eval", *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_folders_are_explained(tmp_path, folders, capsys):
    assert run("eval", tmp_path / "absent") == 1
    assert run("eval", tmp_path / "absent", "--recorded") == 1
    assert run("plot", tmp_path / "absent") == 1
    assert run("eval", folders[0], folders[0]) == 1
    assert [("absent" in line or "named twice" in line) for line in capsys.readouterr().err.splitlines()] == [True] * 4


def test_plot(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("plot", folders[0]) == 0
    assert (folders[0] / "plot.png").stat().st_size > 10_000
    assert "total_loss, AP, boxes, AP, masks, learning rate" in capsys.readouterr().out
    assert run("plot", *folders) == 0
    assert (tmp_path / "plot.png").stat().st_size > 10_000
