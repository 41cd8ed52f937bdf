"""lift_det.Predictor equals a config's own evaluation, for every kind, size and orientation of image."""

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import lift_det
from lift_det import LiFTPlus, model_zoo, save_lift
from lift_det.data import DatasetError, DatasetMapper
from lift_det.engine import load_model
from tests.engine.tiny_detector import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor(detector_folder):
    return lift_det.Predictor.from_folder(detector_folder, device="cpu", array_format="RGB")


@pytest.fixture(scope="module")
def photo():
    """Smooth colours, 60 x 90, different in all four corners and in all three channels."""
    y, x = np.mgrid[:60, :90]
    return np.stack([x * 2.5, y * 4, 255 - x - y], axis=2).clip(0, 255).astype(np.uint8)


def assert_equal(result, expected, tolerance=0.0):
    assert len(result) == len(expected) > 0
    assert result.image_size == expected.image_size
    for name, value in expected.get_fields().items():
        got = result.get(name)
        if name == "pred_boxes":
            got, value = got.tensor, value.tensor
        if value.dtype == torch.bool and tolerance:
            assert (got != value).float().mean() < 1e-3
        else:
            torch.testing.assert_close(got, value, rtol=tolerance, atol=tolerance)


def differ(result, other):
    """By more than a pixel of a box."""
    boxes = result.pred_boxes.tensor, other.pred_boxes.tensor
    return len(result) != len(other) or float((boxes[0] - boxes[1]).abs().max()) > 1


@pytest.mark.parametrize("size", [(60, 90), (200, 130), (7, 300)])
def test_equals_the_evaluation_of_the_config(predictor, detector_folder, tmp_path, photo, size):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).resize(size[::-1]).save(path)
    cfg = LazyConfig.load(str(detector_folder / "config.yaml"))
    mapper = instantiate(cfg.dataloader.test.mapper)
    with torch.no_grad():
        record = {"file_name": str(path), "height": size[0], "width": size[1]}
        expected = load_model(cfg, detector_folder / "model_final.pth", "cpu")([mapper(record)])[0]["instances"]
    assert expected.pred_masks.shape[1:] == size
    assert_equal(predictor(path)["instances"], expected)
    with_rle = lift_det.Predictor(cfg, detector_folder / "model_final.pth", device="cpu", mask_format=None)(path)
    assert with_rle["instances"].pred_masks_rle[0]["size"] == list(size)  # as in the config


def test_takes_arrays_paths_and_pillow_images(predictor, detector_folder, tmp_path, photo):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    expected = predictor(photo)["instances"]
    bgr = lift_det.Predictor.from_folder(detector_folder, device="cpu", array_format="BGR")
    alpha = np.full((60, 90, 1), 7, np.uint8)
    for result in (
        predictor(path),
        predictor(str(path)),
        predictor(Image.fromarray(np.concatenate([photo, alpha], 2), "RGBA")),
        predictor(np.concatenate([photo, alpha], 2)),
        bgr(photo[:, :, ::-1]),
        bgr(np.concatenate([photo[:, :, ::-1], alpha], 2)),
        bgr(path),
    ):
        assert_equal(result["instances"], expected)
    assert differ(bgr(photo)["instances"], expected)

    grey = photo[:, :, 0]
    expected = predictor(np.repeat(grey[:, :, None], 3, axis=2))["instances"]
    for image in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert_equal(predictor(image)["instances"], expected)


def test_a_batch_of_mixed_sizes_is_the_images_one_by_one(predictor, photo):
    images = [photo, np.ascontiguousarray(photo[:, ::-1]), photo[:10], Image.fromarray(photo[:, :5]), photo[:1, :1]]
    for output, image in zip(predictor(images), images, strict=True):
        assert_equal(output["instances"], predictor(image)["instances"], tolerance=1e-4)
    assert predictor([]) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_any_size(predictor, size):
    """10,000 to 1 is 0.006 pixels of a side of 64, which detectron2's resizing rounds to none."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    instances = predictor(image)["instances"]
    assert instances.image_size == size and instances.pred_masks.shape[1:] == size
    boxes = instances.pred_boxes.tensor
    assert len(boxes) and (boxes >= 0).all()
    assert (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_images_larger_than_the_square_of_the_model_are_resized(detector_folder, photo):
    """For configs that do not resize, because their dataset has images of one size."""
    cfg = tiny_config()
    resizing = lift_det.Predictor(cfg, detector_folder / "model_final.pth", device="cpu", array_format="RGB")
    cfg.dataloader.test.mapper.augmentations = []
    predictor = lift_det.Predictor(cfg, detector_folder / "model_final.pth", device="cpu", array_format="RGB")
    assert_equal(predictor(photo)["instances"], resizing(photo)["instances"])
    small = photo[:30, :40]  # stays as it is
    assert differ(predictor(small)["instances"], resizing(small)["instances"])


def test_wrong_images_are_refused(detector_folder, tmp_path, photo):
    predictor = lift_det.Predictor.from_folder(detector_folder, device="cpu")
    with pytest.raises(ValueError, match="array_format='BGR'.*array_format='RGB'"):
        predictor(photo)
    predictor(photo[:, :, 0])  # grey has no channel order
    for wrong in (photo.astype(np.float32), photo[None], photo[:, :, :2], photo[:0]):
        with pytest.raises(ValueError, match="uint8"):
            predictor(wrong)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DatasetError, match="text.jpg"):
        predictor(tmp_path / "text.jpg")


def test_yacs_with_a_trained_lift_whose_file_is_gone(tmp_path, photo):
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml")
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.LIFT.CHECKPOINT = str(tmp_path / "lift.safetensors")
    save_lift(LiFTPlus(64, 8), tmp_path / "lift.safetensors")
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "lift.safetensors").unlink()
    predictor = lift_det.Predictor.from_folder(tmp_path, device="cpu", array_format="RGB")
    assert predictor.class_names == ("circle", "square", "triangle", "star")

    Image.fromarray(photo).save(tmp_path / "photo.png")
    record = {"file_name": str(tmp_path / "photo.png"), "height": 60, "width": 90}
    with torch.no_grad():
        expected = model.eval()([DatasetMapper(cfg, is_train=False)(record)])[0]["instances"]
    assert_equal(predictor(photo)["instances"], expected)


def test_class_names_and_ids(detector_folder):
    def classes(**dataset):
        cfg = tiny_config()
        cfg.dataloader.test.dataset.update(dataset)
        predictor = lift_det.Predictor(cfg, detector_folder / "model_final.pth", device="cpu")
        assert predictor.metadata.thing_classes == list(predictor.class_names)
        return predictor.class_names, predictor.category_ids

    # the synthetic dataset's, from detectron2's catalog
    assert classes() == (("circle", "square", "triangle", "star"), (1, 2, 3, 4))
    own = {"names": "my_unregistered_val", "thing_classes": ["a", "b", "c", "d"], "category_ids": [7, 9, 3, 20]}
    assert classes(**own) == (("a", "b", "c", "d"), (7, 9, 3, 20))
    assert classes(names="unknown") == (("class 0", "class 1", "class 2", "class 3"), (0, 1, 2, 3))
    assert "unknown" not in MetadataCatalog
    with pytest.raises(ValueError, match="4 .*'coco_2017_val'.* 80 "):
        classes(names="coco_2017_val")


def test_configs_that_cannot_read_an_image_are_refused(detector_folder):
    cfg = tiny_config()
    cfg.dataloader.test.mapper.image_format = "YUV-BT.601"
    with pytest.raises(ValueError, match="YUV-BT.601"):
        lift_det.Predictor(cfg, detector_folder / "model_final.pth")
    del cfg.dataloader
    with pytest.raises(ValueError, match="dataloader.test.mapper"):
        lift_det.Predictor(cfg, detector_folder / "model_final.pth")
