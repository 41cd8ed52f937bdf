"""`lift-det predict` on files of many kinds, and wrong commands."""

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from lift_det import cli

ONE_DETECTION = "model.roi_heads.box_predictor.test_topk_per_image=1"


def picture(seed, height=40, width=56):
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def run(*arguments):
    return cli.main(["predict", *map(str, arguments), "--device", "cpu"])


def test_mixed_files(detector_folder, tmp_path, capsys):
    """All that can be read are predicted upright and drawn; all others are listed with a reason."""
    root, output = tmp_path / "in", tmp_path / "out"
    (root / "sub").mkdir(parents=True)
    images = {"plain.jpg": picture(0), "cmyk.jpg": picture(8).convert("CMYK"), "1x1.png": picture(9, 1, 1)}
    images |= {"upright.png": picture(5), "grey.tif": picture(6).convert("L"), "sub/Größe und Name.gif": picture(7)}
    for name, image in images.items():
        image.save(root / name)
    sizes = {name: (image.height, image.width) for name, image in images.items()} | {"turned.png": (40, 56)}
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    picture(5).transpose(Image.Transpose.ROTATE_90).save(root / "turned.png", exif=exif)
    broken = {"cut.jpg": (root / "plain.jpg").read_bytes()[:-150], "empty.jpg": b"", "text.png": b"<html>404</html>"}
    for name, content in broken.items():
        (root / "sub" / name).write_bytes(content)
    (root / "notes.txt").write_text("not an image")

    options = ["--from", detector_folder, "--output", output, "--score-threshold", "0", ONE_DETECTION]
    assert run(root, tmp_path / "gone.jpg", *options) == 1
    printed = capsys.readouterr()
    failed = {str(tmp_path / "gone.jpg"), *(str(root / "sub" / name) for name in broken)}
    assert all(f"'{name}'" in printed.err for name in failed) and "plain.jpg" not in printed.err
    assert f"{len(sizes)} images, {len(sizes)} detections" in printed.out

    coco = COCO(str(output / "predictions.json"))
    entries = coco.dataset["images"]
    assert {image["file_name"]: (image["height"], image["width"]) for image in entries} == sizes
    assert {entry["file"] for entry in coco.dataset["info"]["unreadable"] if entry["reason"]} == failed
    found = {image["file_name"]: coco.imgToAnns[image["id"]][0] for image in entries}
    assert found["turned.png"]["bbox"] == found["upright.png"]["bbox"] != found["plain.jpg"]["bbox"]
    assert (output / "turned.png").read_bytes() == (output / "upright.png").read_bytes()
    assert len([path for path in output.rglob("*.*") if path.suffix != ".json"]) == len(sizes)


def test_a_config_with_weights_and_a_pattern(detector_folder, tmp_path, capsys):
    for seed, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        picture(seed).save(tmp_path / folder / "x.png")
    config = ["--config-file", detector_folder / "config.yaml", "--weights", detector_folder / "model_final.pth"]
    arguments = [tmp_path / "*" / "x.png", ONE_DETECTION, *config, "--output", tmp_path / "out"]
    assert run(*arguments, "--score-threshold", "0", "--no-pictures", "--batch-size", "2") == 0
    assert "2 images, 2 detections" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]
    # a threshold that nothing reaches
    assert run(*arguments, "--score-threshold", "1") == 0
    assert "2 images, 0 detections" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("x.png"))) == 2
