"""Prediction on files: nothing is lost or overwritten, and videos keep their frames."""

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

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor(detector_folder):
    """Takes arrays as BGR, which must not affect files."""
    predictor = lift_det.Predictor.from_folder(detector_folder, device="cpu", array_format="BGR")
    predictor.model.roi_heads.box_predictor.test_topk_per_image = 2
    return predictor


def picture(seed, height=40, width=56):
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path):
    """Six images, two pairs of which have the same stem or the same name."""
    folder = tmp_path / "in"
    for seed, name in enumerate(("dog.jpg", "dog.png", "a/x.png", "b/x.png", "a.gif", "a.gif.jpg")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)
    return folder


def read(output):
    return json.loads((output / "predictions.json").read_text())


@pytest.mark.parametrize(("batch_size", "mask_format"), [(1, "bitmask"), (4, "rle")])
def test_the_json_is_a_coco_data_set_of_the_predictions(
    predictor, folder, tmp_path, monkeypatch, batch_size, mask_format
):
    monkeypatch.setattr(predictor.model, "mask_format", mask_format)
    result = predict_files(predictor, [folder], tmp_path / "out", batch_size=batch_size)
    monkeypatch.undo()
    # no picture overwrites another
    pictures = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    unchanged = {"dog.jpg", "dog.png", "a/x.png", "b/x.png", "a.gif.jpg"}
    assert pictures == unchanged | {"a.gif.jpg.jpg", "predictions.json"}
    coco = COCO(result.json_file)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(predictor.class_names)
    assert coco.dataset["info"] == {"complete": True, "unreadable": []} and result.failures == []
    assert len(coco.anns) == result.num_detections == 2 * result.num_images == 12
    assert {image["file_name"] for image in coco.dataset["images"]} == unchanged | {"a.gif"}
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


def test_an_interruption_keeps_earlier_predictions(predictor, folder, tmp_path, monkeypatch):
    forward, calls = predictor.model.forward, []

    def interrupted(batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(batch)

    monkeypatch.setattr(predictor.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [folder], tmp_path / "out")
    content = read(tmp_path / "out")
    assert len(content["images"]) == 3 and len(content["annotations"]) == 6
    assert content["info"]["complete"] is False


def test_inputs_are_never_overwritten(predictor, folder, tmp_path):
    before = (folder / "dog.jpg").read_bytes()
    with pytest.raises(ValueError, match="dog.jpg"):
        predict_files(predictor, [folder / "dog.jpg"], folder)
    assert (folder / "dog.jpg").read_bytes() == before and not (folder / "predictions.json").exists()
    # a folder inside the input is not an input, also when it has pictures
    for _ in range(2):
        assert predict_files(predictor, [folder], folder / "out").num_images == 6


def test_videos(predictor, folder, tmp_path):
    writer = VideoWriter(folder / "clip.mp4", fps=10)
    for seed in range(5):
        writer.write(picture(seed))
    writer.close()
    (folder / "clip.avi").write_text("words")
    result = predict_files(predictor, [folder], tmp_path / "out", batch_size=3)
    assert [Path(name).name for name, _ in result.failures] == ["clip.avi"]
    assert result.num_images == 6 + 5 and not (tmp_path / "out" / "clip.avi.mp4").exists()

    frames = [image for image in read(tmp_path / "out")["images"] if "video" in image]
    assert [frame["frame"] for frame in frames] == list(range(5))
    assert {(frame["video"], frame["width"], frame["height"]) for frame in frames} == {("clip.mp4", 56, 40)}
    coco = COCO(result.json_file)
    originals = dict(VideoReader(folder / "clip.mp4").frames())
    drawn = VideoReader(tmp_path / "out" / "clip.mp4")
    assert drawn.fps == pytest.approx(10)
    pictures = dict(drawn.frames())
    assert list(pictures) == list(range(5))
    for frame in frames:
        original = originals[frame["frame"]]
        expected = predictor(Image.fromarray(original))["instances"]
        scores = [annotation["score"] for annotation in coco.imgToAnns[frame["id"]]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-5)
        # something is drawn in, and it is still that frame
        difference = np.abs(pictures[frame["frame"]].astype(int) - original).mean()
        assert pictures[frame["frame"]].shape == original.shape and 1 < difference < 60

    predict_files(predictor, [folder / "clip.mp4"], tmp_path / "second", every=2)
    assert [image["frame"] for image in read(tmp_path / "second")["images"]] == [0, 2, 4]
    assert VideoReader(tmp_path / "second" / "clip.mp4").fps == pytest.approx(5, rel=0.01)
