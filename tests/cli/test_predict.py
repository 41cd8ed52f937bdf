"""`lift-det predict` on files of many kinds, and wrong commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lift_det import cli
from tests.engine.tiny_detector import write_output_folder

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_DETECTION = "model.roi_heads.box_predictor.test_topk_per_image=1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output_folder(tmp_path_factory.mktemp("training") / "output")


def picture(seed: int, height: int = 40, width: int = 56) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_mixed_files(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that can be read are predicted upright and drawn; all others are listed with a reason."""
    root, output = tmp_path / "in", tmp_path / "out"
    (root / "sub").mkdir(parents=True)
    images = {f"seed_{seed}.jpg": picture(seed) for seed in range(3)}
    images |= {"upright.png": picture(5), "grey.tif": picture(6).convert("L"), "sub/Größe und Name.gif": picture(7)}
    images |= {"cmyk.jpg": picture(8).convert("CMYK"), "1x1.png": picture(9, 1, 1), "wide.png": picture(9, 1, 500)}
    for name, image in images.items():
        image.save(root / name)
    sizes = {name: (image.height, image.width) for name, image in images.items()}
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    picture(5).transpose(Image.Transpose.ROTATE_90).save(root / "turned.png", exif=exif)
    sizes["turned.png"] = (40, 56)
    broken = {"cut.jpg": (root / "seed_0.jpg").read_bytes()[:-150], "empty.jpg": b"", "text.png": b"<html>404</html>"}
    for name, content in broken.items():
        (root / "sub" / name).write_bytes(content)
    (root / "notes.txt").write_text("not an image")

    arguments = ["predict", str(root), str(tmp_path / "gone.jpg"), "--from", str(trained), "--output", str(output)]
    assert cli.main([*arguments, "--device", "cpu", "--score-threshold", "0", ONE_DETECTION]) == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "cannot read" in line]
    failed = {str(tmp_path / "gone.jpg"), *(str(root / "sub" / name) for name in broken)}
    assert {line.split("'")[1] for line in lines} == failed and all(line.split("': ")[1] for line in lines)
    assert f"{len(sizes)} images, {len(sizes)} detections" in printed.out

    coco = COCO(str(output / "predictions.json"))
    content = json.loads((output / "predictions.json").read_text())
    assert {image["file_name"]: (image["height"], image["width"]) for image in content["images"]} == sizes
    assert {entry["file"] for entry in content["info"]["unreadable"]} == failed and content["info"]["complete"]
    found = {image["file_name"]: coco.imgToAnns[image["id"]][0] for image in content["images"]}
    assert found["turned.png"]["bbox"] == found["upright.png"]["bbox"] != found["seed_0.jpg"]["bbox"]
    assert (output / "turned.png").read_bytes() == (output / "upright.png").read_bytes()
    assert len([path for path in output.rglob("*.*") if path.suffix != ".json"]) == len(sizes)


def test_a_config_with_weights_and_a_pattern(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        picture(seed).save(tmp_path / folder / "x.png")
    output = tmp_path / "out"
    config = ["--config-file", str(trained / "config.yaml"), "--weights", str(trained / "model_final.pth")]
    arguments = ["predict", str(tmp_path / "*" / "x.png"), ONE_DETECTION, *config, "--output", str(output)]
    options = ["--score-threshold", "0", "--no-pictures", "--batch-size", "2"]
    assert cli.main([*arguments, "--device", "cpu", *options]) == 0
    assert "2 images, 2 detections" in capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["predictions.json"]
    # a threshold that nothing reaches
    assert cli.main([*arguments, "--device", "cpu", "--score-threshold", "1"]) == 0
    assert "2 images, 0 detections" in capsys.readouterr().out
    assert sorted(path.name for path in output.rglob("*.png")) == ["x.png", "x.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["a.jpg", "--output", "OUT"], 2, "--from"),
        (["a.jpg", "--from", "TRAINED"], 2, "--output"),
        ([ONE_DETECTION, "--from", "TRAINED", "--output", "OUT"], 2, "image"),
        (["absent.jpg", "--from", "TRAINED", "--output", "OUT"], 1, "'absent.jpg'"),
        (["a.jpg", "--from", "absent", "--output", "OUT"], 1, "'absent'"),
        (["a.jpg", "--from", "TRAINED", "--batch-size", "0", "--output", "OUT"], 1, "batch_size=0"),
    ],
)
def test_wrong_commands(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
) -> None:
    places = {"TRAINED": str(trained), "OUT": str(tmp_path / "out")}
    assert cli.main(["predict", *(places.get(argument, argument) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert part in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
