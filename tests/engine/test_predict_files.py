"""Prediction on files: nothing is lost or overwritten, and videos keep their frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import lift_det
from lift_det.data.video import VideoReader, VideoWriter
from lift_det.engine import predict_files
from tests.engine.tiny_detector import write_output_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> lift_det.Predictor:
    """Takes arrays as BGR, which must not affect files."""
    folder = write_output_folder(tmp_path_factory.mktemp("training") / "output")
    predictor = lift_det.Predictor.from_folder(folder, device="cpu", array_format="BGR")
    predictor.model.roi_heads.box_predictor.test_topk_per_image = 2
    return predictor


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, two pairs of which have the same stem or the same name."""
    folder = tmp_path / "in"
    for seed, name in enumerate(("dog.jpg", "dog.png", "a/x.png", "b/x.png", "a.gif", "a.gif.jpg")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)
    return folder


def read(output: Path) -> dict:
    return json.loads((output / "predictions.json").read_text())


def test_no_picture_overwrites_another(predictor: lift_det.Predictor, folder: Path, tmp_path: Path) -> None:
    result = predict_files(predictor, [folder], tmp_path / "out")
    pictures = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    unchanged = {"dog.jpg", "dog.png", "a/x.png", "b/x.png", "a.gif.jpg"}
    assert pictures == unchanged | {"a.gif.jpg.jpg", "predictions.json"}
    assert result.num_images == 6 and result.failures == []
    assert {image["file_name"] for image in read(tmp_path / "out")["images"]} == unchanged | {"a.gif"}


@pytest.mark.parametrize(("batch_size", "mask_format"), [(1, "bitmask"), (4, "rle")])
def test_the_json_is_a_coco_data_set_of_the_predictions(
    predictor: lift_det.Predictor, folder: Path, tmp_path: Path, batch_size: int, mask_format: str
) -> None:
    predictor.model.mask_format = mask_format
    result = predict_files(predictor, [folder], tmp_path / "out", pictures=False, batch_size=batch_size)
    predictor.model.mask_format = "bitmask"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]
    coco = COCO(result.json_file)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(predictor.class_names)
    assert coco.dataset["info"] == {"complete": True, "unreadable": []}
    assert len(coco.anns) == result.num_detections == 12
    for image in coco.dataset["images"]:
        assert (image["height"], image["width"]) == (40, 56)
        expected = predictor(folder / image["file_name"])["instances"]
        found = coco.imgToAnns[image["id"]]
        assert [annotation["score"] for annotation in found] == pytest.approx(expected.scores.tolist(), abs=1e-5)
        for annotation, box, class_, mask in zip(
            found, expected.pred_boxes.tensor, expected.pred_classes, expected.pred_masks, strict=True
        ):
            assert annotation["category_id"] == predictor.category_ids[class_]
            x, y, width, height = annotation["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=1e-3)
            assert (mask_util.decode(annotation["segmentation"]) != mask.numpy()).mean() < 1e-3
            assert annotation["area"] == mask_util.area(annotation["segmentation"])


def test_an_interruption_keeps_earlier_predictions(
    predictor: lift_det.Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(image: np.ndarray, *_: object) -> np.ndarray:
        drawn.append(image)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return image

    monkeypatch.setitem(predict_files.__globals__, "draw_detections", draw)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [folder], tmp_path / "out")
    content = read(tmp_path / "out")
    assert len(content["images"]) == 3 and len(content["annotations"]) == 6
    assert content["info"]["complete"] is False
    for image in content["images"]:
        assert list((tmp_path / "out").glob(image["file_name"] + "*"))


def test_the_json_is_written_on_the_way(
    predictor: lift_det.Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed loses a minute's work at most: here, no image."""
    monkeypatch.setitem(predict_files.__globals__, "_WRITE_PERIOD", -1.0)
    written = []

    def write(path: Path, text: str) -> None:
        content = json.loads(text)
        written.append((len(content["images"]), content["info"]["complete"]))

    monkeypatch.setitem(predict_files.__globals__, "write_text_atomically", write)
    predict_files(predictor, [folder], tmp_path / "out", pictures=False)
    assert written == [*((i, False) for i in range(1, 7)), (6, True)]


def test_inputs_are_never_overwritten(predictor: lift_det.Predictor, folder: Path, tmp_path: Path) -> None:
    before = (folder / "dog.jpg").read_bytes()
    for inputs, output in (([folder], folder), ([folder / "dog.jpg"], folder)):
        with pytest.raises(ValueError, match="overwrite"):
            predict_files(predictor, inputs, output)
    assert (folder / "dog.jpg").read_bytes() == before and not (folder / "predictions.json").exists()
    # a folder inside the input is fine, also the second time, when it has pictures
    for _ in range(2):
        assert predict_files(predictor, [folder], folder / "out").num_images == 6


def test_nothing_found(predictor: lift_det.Predictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty.*x\*"):
        predict_files(predictor, [tmp_path / "empty", str(tmp_path / "x*")], tmp_path / "out")
    with pytest.raises(ValueError, match="batch_size=0"):
        predict_files(predictor, [tmp_path], tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists()


def test_videos(predictor: lift_det.Predictor, folder: Path, tmp_path: Path) -> None:
    writer = VideoWriter(folder / "clip.mp4", fps=10)
    for seed in range(7):
        writer.write(picture(seed))
    writer.close()
    (folder / "clip.avi").write_text("words")
    result = predict_files(predictor, [folder], tmp_path / "out", batch_size=3)
    assert [Path(name).name for name, _ in result.failures] == ["clip.avi"]
    assert result.num_images == 6 + 7 and not (tmp_path / "out" / "clip.avi.mp4").exists()

    frames = [image for image in read(tmp_path / "out")["images"] if "video" in image]
    assert [frame["frame"] for frame in frames] == list(range(7))
    assert {(f["file_name"], f["video"], f["width"], f["height"]) for f in frames} == {("clip.mp4", "clip.mp4", 56, 40)}
    coco = COCO(result.json_file)
    originals = dict(VideoReader(folder / "clip.mp4").frames())
    drawn = VideoReader(tmp_path / "out" / "clip.mp4")
    assert drawn.fps == pytest.approx(10)
    pictures = dict(drawn.frames())
    assert list(pictures) == list(range(7))
    for frame in frames:
        original = originals[frame["frame"]]
        expected = predictor(Image.fromarray(original))["instances"]
        scores = [annotation["score"] for annotation in coco.imgToAnns[frame["id"]]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-5)
        # something is drawn in, and it is still that frame
        difference = np.abs(pictures[frame["frame"]].astype(int) - original).mean()
        assert pictures[frame["frame"]].shape == original.shape and 1 < difference < 60

    result = predict_files(predictor, [folder / "clip.mp4"], tmp_path / "third", every=3)
    assert [image["frame"] for image in read(tmp_path / "third")["images"]] == [0, 3, 6]
    assert VideoReader(tmp_path / "third" / "clip.mp4").fps == pytest.approx(10 / 3, rel=0.01)
