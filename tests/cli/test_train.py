"""`lift-det train` on a small data set in COCO's format: from the check of the annotations to what the folder holds."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig

from lift_det import LiFT, LiFTPlus, Predictor, save_lift
from lift_det.cli import main
from lift_det.data import write_synthetic_coco
from lift_det.evaluation import read_metrics

CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
#: overrides that make the model small and the training quick
SMALL = (
    "model.backbone.net.depth=1",
    "model.backbone.net.residual_block_indexes=[]",
    "model.proposal_generator.post_nms_topk=[20,10]",
    "model.roi_heads.batch_size_per_image=8",
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json, val.json and images/, as a user has it."""
    folder = tmp_path_factory.mktemp("own")
    root = Path(write_synthetic_coco(folder / "drawn", num_train=12, num_val=4))
    root = next(root.glob("**/annotations")).parent
    (folder / "images").mkdir()
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"]:
            shutil.copy(root / split / image["file_name"], folder / "images" / f"{split}_{image['file_name']}")
            image["file_name"] = f"{split}_{image['file_name']}"
        kept = content["categories"][:3]
        content["categories"] = [{**category, "id": category["id"] * 10} for category in kept]
        ids = {category["id"] for category in kept}
        content["annotations"] = [
            {**a, "category_id": a["category_id"] * 10} for a in content["annotations"] if a["category_id"] in ids
        ]
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def edited(own: Path, folder: Path, edit: Callable[[dict], None]) -> str:
    """--dataset for the training set with something changed."""
    content = json.loads((own / "train.json").read_text())
    edit(content)
    (folder / "edited.json").write_text(json.dumps(content))
    return f"{folder / 'edited.json'}:{own / 'images'}"


def test_training_leaves_a_folder_that_needs_nothing_else(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    sets = ["--dataset", f"{own}/train.json:{own}/images", "--val", f"{own}/val.json:{own}/images"]
    code = main(["train", CONFIG, *sets, "--iterations", "2", "--batch-size", "2", "--output", str(output), *SMALL])
    printed = capsys.readouterr().out
    assert code == 0
    assert "Nothing is wrong with it" in printed and "3 classes (model.roi_heads.num_classes)" in printed
    assert "learning rate 0.00025 = 0.001 × 2 / 8" in printed
    assert f"lift-det predict IMAGES --from {output}" in printed

    figures = read_metrics(output)[-1]
    assert figures["iteration"] == 2 and "segm/AP" in figures
    categories = json.loads((own / "train.json").read_text())["categories"]
    assert {f"bbox/AP-{category['name']}" for category in categories} < set(figures)
    assert (output / "model_best.pth").is_file() and (output / "model_final.pth").is_file()
    assert list(output.glob("events.out.tfevents.*"))

    # the folder alone: classes and weights, the annotation files gone
    moved = tmp_path / "elsewhere"
    output.rename(moved)
    predictor = Predictor.from_folder(moved, score_threshold=0.0)
    assert list(predictor.class_names) == [category["name"] for category in categories]
    assert list(predictor.category_ids) == [category["id"] for category in categories]
    image = next((own / "images").iterdir())
    assert predictor(image)["instances"].has("pred_masks")


def test_resume_goes_on(own: Path, tmp_path: Path) -> None:
    command = ["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--val", f"{own}/val.json:{own}/images"]
    command += ["--batch-size", "1", "--output", str(tmp_path), *SMALL]
    assert main([*command, "--iterations", "1"]) == 0
    assert main([*command, "--iterations", "2", "--resume"]) == 0
    assert [line["iteration"] for line in read_metrics(tmp_path) if "segm/AP" in line] == [1, 2]


def test_a_new_training_sets_aside_what_an_earlier_one_left(own: Path, tmp_path: Path) -> None:
    (tmp_path / "model_ema.pth").write_bytes(b"earlier")
    command = ["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--val", f"{own}/val.json:{own}/images"]
    command += ["--batch-size", "1", "--iterations", "1", "--output", str(tmp_path), *SMALL]
    # a model that finds nothing, as one may after a few iterations, is no error
    assert main([*command, "model.roi_heads.box_predictor.test_score_thresh=1.0"]) == 0
    assert (tmp_path / "model_ema.pth.old").read_bytes() == b"earlier"
    assert not (tmp_path / "model_ema.pth").exists()
    # and what it has saved is a config to train on
    config = str(tmp_path / "config.yaml")
    assert main([command[0], config, *command[2:], "--check"]) == 0


@pytest.mark.parametrize("kind", [LiFT, LiFTPlus])
def test_a_trained_lift_is_one_option(
    own: Path, tmp_path: Path, kind: type[LiFT], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    lift = kind(128, 8)
    torch.nn.init.normal_(lift.outc.weight, std=0.1)
    save_lift(lift, tmp_path / "lift.safetensors")
    output = tmp_path / "out"
    command = ["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--val", f"{own}/val.json:{own}/images"]
    command += ["--batch-size", "1", "--iterations", "1", "--output", str(output), *SMALL]
    assert main([*command, "--lift", str(tmp_path / "lift.safetensors"), "model.backbone.freeze_lift=True"]) == 0
    saved = LazyConfig.load(str(output / "config.yaml"))
    assert saved.model.backbone.lift.checkpoint == str(tmp_path / "lift.safetensors")
    (tmp_path / "lift.safetensors").unlink()
    trained = Predictor.from_folder(output).model.backbone.lift
    assert type(trained) is kind and trained.settings() == lift.settings()
    assert all(torch.equal(value, trained.state_dict()[name].cpu()) for name, value in lift.state_dict().items())

    # of another ViT
    assert main([*command, "--lift", str(tmp_path / "gone.safetensors"), "--check"]) == 1
    assert "There is no checkpoint at" in capsys.readouterr().err
    save_lift(kind(64, 8), tmp_path / "narrow.safetensors")
    assert main([*command, "--lift", str(tmp_path / "narrow.safetensors")]) == 1
    assert "stated in_channels=128, in the file in_channels=64" in capsys.readouterr().err


def test_a_config_without_a_lift_has_no_place_for_one(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_lift(LiFT(768, 16), tmp_path / "lift.safetensors")
    command = ["train", "COCO/mask_rcnn_vitdet_b_100ep", "--dataset", f"{own}/train.json:{own}/images", "--check"]
    assert main([*command, "--output", str(tmp_path), "--lift", str(tmp_path / "lift.safetensors")]) == 1
    assert "has no LiFT (model.backbone.lift.checkpoint)" in capsys.readouterr().err


def test_masks_that_only_the_training_set_has_are_not_evaluated(own: Path, tmp_path: Path) -> None:
    content = json.loads((own / "val.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    command = ["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--iterations", "1", "--batch-size", "1"]
    assert main([*command, "--val", f"{tmp_path}/boxes.json:{own}/images", "--output", str(tmp_path), *SMALL]) == 0
    assert "bbox/AP" in read_metrics(tmp_path)[-1] and "segm/AP" not in read_metrics(tmp_path)[-1]


def test_check_says_what_would_be_done_and_trains_nothing(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(content: dict) -> None:
        content["annotations"][0]["bbox"] = [10, 10, 0, 5]

    broken = json.loads((own / "train.json").read_text())["annotations"][0]["id"]
    data = edited(own, tmp_path, spoil)
    output = tmp_path / "out"
    code = main(
        [
            "train",
            CONFIG,
            "--dataset",
            data,
            "--val",
            f"{own}/val.json:{own}/images",
            "--check",
            "--output",
            str(output),
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert f"annotation {broken}" in printed
    assert "700 iterations" in printed
    assert not (output / "metrics.json").exists()
    left = json.loads((output / "check" / "train" / "edited.json").read_text())["annotations"]
    assert broken not in {a["id"] for a in left} and left
    assert f"annotation {broken}" in (output / "check" / "train" / "findings.txt").read_text()


def test_errors_in_the_annotations_stop_it(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(content: dict) -> None:
        content["categories"][0]["name"] = "something else"

    val = edited(own, tmp_path, spoil)
    code = main(
        ["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--val", val, "--output", str(tmp_path)]
    )
    captured = capsys.readouterr()
    assert code == 1
    assert "something else" in captured.out
    assert "cannot be used as it is" in captured.err
    assert not (tmp_path / "metrics.json").exists()


def test_without_val_every_tenth_image_is_held_out(own: Path, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert (
            main(["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--check", "--output", str(tmp_path)])
            == 0
        )
    parts = [json.loads(path.read_text()) for path in sorted((tmp_path / "check").glob("*/*.json"))]
    ids = [{image["id"] for image in part["images"]} for part in parts]
    assert [len(part) for part in ids] == [11, 1] and not ids[0] & ids[1]
    assert all(
        {a["image_id"] for a in part["annotations"]} <= own_ids for part, own_ids in zip(parts, ids, strict=True)
    )


def test_overrides_come_last_and_the_trainer_takes_them(own: Path, tmp_path: Path) -> None:
    command = ["train", CONFIG, "--dataset", f"{own}/train.json:{own}/images", "--val", f"{own}/val.json:{own}/images"]
    code = main(
        [*command, "train.trainer.accumulate=2", "--iterations", "1", "train.trainer.ema_decay=0.9", "--batch-size=2"]
        + [
            "--output",
            str(tmp_path),
            "train.eval_period=0",
            "optimizer._target_=torch.optim.AdamW",
            "~optimizer.max_norm",
        ]
        + list(SMALL)
    )
    assert code == 2  # an override that detectron2 does not know, said and not passed over
    code = main(
        [*command, "train.trainer.accumulate=2", "--iterations", "1", "train.trainer.ema_decay=0.9", "--batch-size=2"]
        + ["--output", str(tmp_path), *SMALL]
    )
    assert code == 0
    assert (tmp_path / "model_ema.pth").is_file()
    saved = LazyConfig.load(str(tmp_path / "config.yaml"))
    assert saved.train.trainer.accumulate == 2 and saved.train.trainer.ema_decay == 0.9


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "LiFT/lift_vits14_cpu", "--dataset", "DATA"], 2, "no LazyConfig of a detector"),
        (["train", "no_such_config", "--dataset", "DATA"], 1, "no_such_config"),
        (["train", CONFIG, "--dataset", "nowhere.json:images"], 1, "nowhere.json"),
        (["train", CONFIG, "--dataset", "DATA", "--unknown"], 2, "--unknown"),
    ],
)
def test_what_is_wrong_is_said(
    own: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"{own}/train.json:{own}/images"
    assert main([data if argument == "DATA" else argument for argument in arguments]) == code
    assert said in capsys.readouterr().err
