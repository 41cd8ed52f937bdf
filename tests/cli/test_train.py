"""`lift-det train` on a small dataset in COCO's format."""

import json

import pytest
import torch
from detectron2.config import LazyConfig
from pycocotools.coco import COCO

from lift_det import LiFT, LiFTPlus, Predictor, save_lift
from lift_det.cli import main
from lift_det.data import write_synthetic_coco
from lift_det.evaluation import read_metrics

CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
SMALL = (
    "model.backbone.net.depth=1",
    "model.backbone.net.residual_block_indexes=[]",
    "model.proposal_generator.post_nms_topk=[20,10]",
    "model.roi_heads.batch_size_per_image=8",
)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with train.json, val.json and their folders of images, with categories 10, 20 and 30."""
    folder = write_synthetic_coco(tmp_path_factory.mktemp("own"), num_train=12, num_val=4)
    for split in ("train", "val"):
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        content["categories"] = content["categories"][:3]
        ids = [category["id"] for category in content["categories"]]
        content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] in ids]
        for category in content["categories"]:
            category["id"] *= 10
        for annotation in content["annotations"]:
            annotation["category_id"] *= 10
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def train(own, output, *arguments, config=CONFIG, data="train", val="val"):
    """Runs the command; `data` and `val` are names of files without .json, an empty `val` leaves --val out."""
    sets = ["--dataset", f"{own}/{data}.json:{own}/train"]
    sets += ["--val", f"{own}/{val}.json:{own}/val"] if val else []
    return main(["train", config, *sets, "--batch-size", "1", "--output", str(output), *arguments])


def write_edited(own, name, split, edit):
    content = json.loads((own / f"{split}.json").read_text())
    edit(content)
    (own / f"{name}.json").write_text(json.dumps(content))


def test_trains_resumes_and_leaves_a_folder_that_needs_nothing_else(own, tmp_path, capsys):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "model_ema.pth").write_bytes(b"of an earlier training")
    overrides = ("train.trainer.accumulate=2", "train.trainer.ema_decay=0.9", *SMALL)
    assert train(own, output, "--iterations", "1", *overrides) == 0
    printed = capsys.readouterr().out
    assert "3 classes" in printed and f"lift-det predict IMAGES --from {output}" in printed
    assert (output / "model_ema.pth.old").read_bytes() == b"of an earlier training"
    assert train(own, output, "--iterations", "2", "--resume", *overrides) == 0
    lines = [line for line in read_metrics(output) if "segm/AP" in line]
    names = [category["name"] for category in json.loads((own / "train.json").read_text())["categories"]]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert {f"bbox/AP-{name}" for name in names} < set(lines[-1])
    assert all((output / f"model_{name}.pth").is_file() for name in ("best", "final", "ema"))
    saved = LazyConfig.load(str(output / "config.yaml"))
    assert saved.train.trainer.accumulate == 2 and saved.train.trainer.ema_decay == 0.9

    moved = output.rename(tmp_path / "elsewhere")
    predictor = Predictor.from_folder(moved, score_threshold=0.0)
    assert list(predictor.class_names) == names and list(predictor.category_ids) == [10, 20, 30]
    assert predictor(next((own / "val").iterdir()))["instances"].has("pred_masks")
    # the saved config can be trained
    assert train(own, tmp_path / "again", "--check", "--iterations", "1", config=str(moved / "config.yaml")) == 0


def test_a_trained_lift_and_a_val_set_without_masks(own, tmp_path, capsys):
    def remove_masks(content):
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    write_edited(own, "boxes", "val", remove_masks)
    torch.manual_seed(0)
    lift, path = LiFTPlus(128, 8), tmp_path / "lift.safetensors"
    save_lift(lift, path)
    output = tmp_path / "out"
    options = ["--iterations", "1", "--lift", str(path), "model.backbone.freeze_lift=True", *SMALL]
    options += ["model.roi_heads.box_predictor.test_score_thresh=1.0"]  # finding nothing is no error
    assert train(own, output, *options, val="boxes") == 0
    assert "bbox/AP" in read_metrics(output)[-1] and "segm/AP" not in read_metrics(output)[-1]
    path.unlink()
    trained = Predictor.from_folder(output).model.backbone.lift
    assert all(torch.equal(value, trained.state_dict()[name].cpu()) for name, value in lift.state_dict().items())

    assert train(own, output, "--lift", str(path), "--check") == 1
    assert str(path) in capsys.readouterr().err
    save_lift(LiFT(64, 8), path)
    assert train(own, output, "--lift", str(path), *SMALL) == 1
    error = capsys.readouterr().err
    assert "in_channels=128" in error and "in_channels=64" in error
    assert train(own, output, "--lift", str(path), "--check", config="COCO/mask_rcnn_vitdet_b_100ep") == 1
    assert "model.backbone.lift.checkpoint" in capsys.readouterr().err


def test_check_trains_nothing(own, tmp_path, capsys):
    """A box without a width is left out, and without --val every 10th image is held out."""

    def spoil(content):
        content["annotations"][0].update(id=777_777, bbox=[10, 10, 0, 5])

    write_edited(own, "edited", "train", spoil)
    assert train(own, tmp_path, "--check", data="edited", val="") == 0
    assert "annotation 777777" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["check"]
    assert "annotation 777777" in (tmp_path / "check" / "train" / "findings.txt").read_text()
    train_part, val_part = (COCO(path) for path in sorted((tmp_path / "check").glob("*/*.json")))
    assert (len(train_part.imgs), len(val_part.imgs)) == (11, 1) and not train_part.imgs.keys() & val_part.imgs.keys()
    for part in (train_part, val_part):
        assert part.imgToAnns.keys() <= part.imgs.keys() and 777_777 not in part.anns


def test_errors_in_the_annotations_and_overrides(own, tmp_path, capsys):
    def rename(content):
        content["categories"][0]["name"] = "something else"

    write_edited(own, "renamed", "val", rename)
    assert train(own, tmp_path, val="renamed") == 1
    captured = capsys.readouterr()
    assert "something else" in captured.out and "renamed.json" in captured.err
    assert train(own, tmp_path, "train.max_iter.x=1") == 2
    assert "train.max_iter.x=1" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
