"""`lift-det predict`: a hundred files as people have them, and what is said of a wrong command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lift_det import cli
from tests.engine.tiny_detector import write_output_folder

pytestmark = pytest.mark.usefixtures("one_thread")

#: EXIF orientations, and what a camera that was held so has stored of an upright image
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
ONE_DETECTION = "model.roi_heads.box_predictor.test_topk_per_image=1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output_folder(tmp_path_factory.mktemp("training") / "output")


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray | Image.Image, orientation: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(path, exif=exif, **options)


def write_mixed_files(root: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """A hundred files that call themselves images, and some that do not.

    Returns:
        Height and width, upright, of those that can be read, by their names; and the names of the others.
    """
    readable: dict[str, tuple[int, int]] = {}

    def add(name: str, pixels: np.ndarray | Image.Image, size: tuple[int, int] = (40, 56), **options: object) -> None:
        save(root / name, pixels, **options)
        readable[name] = size

    upright = picture(0)
    add("turned/upright.png", upright)
    for orientation, stored in STORED.items():
        for suffix in ("png", "tiff"):
            add(f"turned/{orientation}.{suffix}", stored(upright), orientation=orientation)
        add(f"turned/{orientation}.jpg", stored(upright), orientation=orientation)
        # what such a JPEG holds, upright: JPEG itself changes the pixels
        save(root / "plain.jpg", stored(upright))
        back = {6: 8, 8: 6}.get(orientation, orientation)
        add(f"turned/{orientation}_of_jpeg.png", STORED[back](np.asarray(Image.open(root / "plain.jpg"))))
        (root / "plain.jpg").unlink()

    for seed, mode in enumerate(("L", "LA", "P", "1", "RGBA"), 1):
        add(f"modes/{mode}.png", Image.fromarray(picture(seed)).convert(mode))
    for seed, mode in enumerate(("L", "CMYK"), 10):
        add(f"modes/{mode}.jpg", Image.fromarray(picture(seed)).convert(mode))
    add("modes/cmyk.tif", Image.fromarray(picture(12)).convert("CMYK"))
    for suffix in ("png", "tif"):
        grey = picture(13)[:, :, 0].astype(np.uint16) * 257
        add(f"modes/sixteen_bits.{suffix}", grey)
    add("modes/eight_bits_of_sixteen.png", picture(13)[:, :, 0])
    for seed, suffix in enumerate(("webp", "bmp", "tiff", "gif", "ppm", "jp2"), 20):
        add(f"formats/image.{suffix}", picture(seed))
    frames = [Image.fromarray(picture(seed)) for seed in (26, 27)]
    add("formats/animated.gif", frames[0], save_all=True, append_images=frames[1:])
    add("formats/progressive.JPG", picture(28), progressive=True)
    add("formats/Größe und Name.jpeg", picture(29))
    for name, size in (("1x1.png", (1, 1)), ("1x1.jpg", (1, 1)), ("wide.png", (1, 3000)), ("tall.jpg", (2000, 1))):
        add(f"sizes/{name}", picture(30, *size), size)
    add("sizes/large.jpg", picture(31, 900, 1200), (900, 1200))

    whole = {suffix: root / "turned" / f"1.{suffix}" for suffix in ("jpg", "png")}
    unreadable = {f"broken/cut.{suffix}": path.read_bytes()[:-150] for suffix, path in whole.items()}
    unreadable |= {
        "broken/cut.webp": (root / "formats/image.webp").read_bytes()[:-60],
        "broken/empty.jpg": b"",
        "broken/text.jpg": b"This is a text.\n" * 20,
        "broken/text.png": b"<html>404 Not Found</html>",
        "broken/zeros.tif": bytes(4096),
        "broken/half_a_header.jpg": whole["jpg"].read_bytes()[:3],
    }
    for name, content in unreadable.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "broken" / "link.jpg").symlink_to(root / "nowhere.jpg")

    for name in ("notes.txt", "modes/labels.json", "formats/.hidden.jpg"):  # none of them is looked at
        (root / name).write_text("words")
    for number in range(100 - len(readable) - len(unreadable) - 1):
        add(f"more/{number}.jpg", picture(100 + number))
    return readable, [*unreadable, "broken/link.jpg"]


def predictions_by_name(json_file: Path) -> dict[str, list[dict]]:
    """What was found in each image, without the numbers that tell images apart."""
    coco = COCO(str(json_file))
    return {
        image["file_name"]: [
            {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
            for annotation in coco.imgToAnns[image["id"]]
        ]
        for image in coco.dataset["images"]
    }


def test_a_hundred_mixed_files(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, output = tmp_path / "in", tmp_path / "out"
    readable, unreadable = write_mixed_files(root)
    assert len(readable) + len(unreadable) == 100 and len(unreadable) == 9

    arguments = ["predict", str(root), "--from", str(trained), "--output", str(output), "--device", "cpu"]
    assert cli.main([*arguments, "--score-threshold", "0", ONE_DETECTION]) == 1
    printed = capsys.readouterr()

    # each unreadable one is named, with a reason, and nothing else is
    lines = [line for line in printed.err.splitlines() if "lift-det: cannot read" in line]
    named = {line.split("'")[1]: line.split("': ")[1] for line in lines}
    assert len(lines) == len(named) == 9
    assert set(named) == {str(root / name) for name in unreadable}
    assert all(len(reason) > 10 for reason in named.values())
    assert named[str(root / "broken/empty.jpg")] == "the file is empty (0 bytes)"
    assert named[str(root / "broken/link.jpg")] == "there is no such file"
    assert "truncated" in named[str(root / "broken/cut.jpg")]
    assert "91 images, 91 detections" in printed.out and str(output / "predictions.json") in printed.out

    # nothing is lost: every readable one, upright, in the JSON and as a picture
    content = json.loads((output / "predictions.json").read_text())
    assert {image["file_name"]: (image["height"], image["width"]) for image in content["images"]} == readable
    assert {entry["file"] for entry in content["info"]["unreadable"]} == set(named) and content["info"]["complete"]
    found = predictions_by_name(output / "predictions.json")
    assert {len(annotations) for annotations in found.values()} == {1}
    pictures = {path.relative_to(output).as_posix() for path in output.rglob("*.*")} - {"predictions.json"}
    assert len(pictures) == len(readable)
    for name, (height, width) in readable.items():
        drawn = name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"
        with Image.open(output / drawn) as image:
            assert image.width * height == image.height * width, name  # upright: small ones are enlarged

    # upright is also what the model saw: all turned ones give what the upright one gives, to the last digit
    upright = found["turned/upright.png"]
    assert found["more/0.jpg"] != upright != found["turned/1_of_jpeg.png"]
    upright_picture = (output / "turned" / "upright.png").read_bytes()
    for orientation in STORED:
        for suffix in ("png", "tiff"):
            assert found[f"turned/{orientation}.{suffix}"] == upright
        assert (output / "turned" / f"{orientation}.png").read_bytes() == upright_picture
        assert found[f"turned/{orientation}.jpg"] == found[f"turned/{orientation}_of_jpeg.png"]
    # 16-bit grey is what its upper eight bits are
    for suffix in ("png", "tif"):
        assert found[f"modes/sixteen_bits.{suffix}"] == found["modes/eight_bits_of_sixteen.png"]


def test_all_readable_is_exit_code_0(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a" / "x.png", picture(0))
    save(tmp_path / "b" / "x.png", picture(1))
    output = tmp_path / "out"
    config = ["--config-file", str(trained / "config.yaml"), "--weights", str(trained / "model_final.pth")]
    inputs = [str(tmp_path / "*" / "x.png")]
    arguments = ["predict", *inputs, ONE_DETECTION, *config, "--output", str(output), "--device", "cpu"]
    assert cli.main([*arguments, "--score-threshold", "0", "--no-pictures", "--batch-size", "2"]) == 0
    printed = capsys.readouterr()
    assert "2 images, 2 detections with a score of 0 or more" in printed.out and "Pictures" not in printed.out
    assert "cannot read" not in printed.err
    assert [path.name for path in output.iterdir()] == ["predictions.json"]
    # a threshold that nothing reaches
    assert cli.main([*arguments, "--score-threshold", "1"]) == 0
    assert "2 images, 0 detections" in capsys.readouterr().out
    assert sorted(path.name for path in output.rglob("*.png")) == ["x.png", "x.png"]
    assert COCO(str(output / "predictions.json")).getAnnIds() == []


def errors() -> Iterator[tuple[list[str], int, str]]:
    model = ["--from", "TRAINED"]
    yield ["a.jpg", "--output", "OUT"], 2, "name a model: --from DIR"
    yield ["a.jpg", *model], 2, "--output"
    yield [ONE_DETECTION, *model, "--output", "OUT"], 2, "name an image, a folder, a pattern or a video"
    yield ["absent.jpg", *model, "--output", "OUT"], 1, "No image and no video: 'absent.jpg': there is no such file"
    yield ["a.jpg", "--from", "absent", "--output", "OUT"], 1, "absent"
    yield ["a.jpg", *model, "--batch-size", "0", "--output", "OUT"], 1, "batch_size=0"


@pytest.mark.parametrize(("arguments", "code", "message"), list(errors()))
def test_wrong_commands(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    places = {"TRAINED": str(trained), "OUT": str(tmp_path / "out")}
    assert cli.main(["predict", *(places.get(argument, argument) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
