import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine.hooks import PeriodicWriter
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import TensorboardXWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lift_det.data import write_synthetic_coco
from lift_det.engine import Trainer
from lift_det.modeling.meta_arch.postprocess import _json_rles
from lift_det.visualization import PredictionPictures


class Growing(nn.Module):
    """Predicts one square, as large as its weight, and learns to make it larger by 10 in each step."""

    def __init__(self, rle):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(10.0))
        self.rle = rle

    def forward(self, batch):
        if self.training:
            return {"loss": -self.size}
        instances = Instances((128, 128))
        size = self.size.item()
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, size, size]]))
        if self.rle:
            instances.pred_masks_rle = _json_rles(torch.ones(1, 28, 28), instances.pred_boxes.tensor, (128, 128), 0.5)
        instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([0.9])
        return [{"instances": instances}]


@pytest.fixture
def shapes(tmp_path):
    write_synthetic_coco(tmp_path, num_train=1, num_val=3)
    folder = tmp_path / "synthetic"
    register_coco_instances("shapes", {}, str(folder / "annotations/instances_val.json"), str(folder / "val"))
    yield "shapes"
    DatasetCatalog.remove("shapes")
    MetadataCatalog.remove("shapes")


def _train(folder, shapes, rle=False, period=2, **options):
    model = Growing(rle)
    trainer = Trainer(model, [[{}]] * 5, torch.optim.SGD(model.parameters(), lr=10.0), **options)
    dataset = DatasetCatalog.get(shapes)
    pictures = PredictionPictures(dataset, [shapes], lambda image: image, period=period, num_images=2)
    trainer.register_hooks([pictures, PeriodicWriter([TensorboardXWriter(str(folder))], period=3)])
    trainer.train(0, 5)
    assert model.training and model.size == 60
    return _read(folder)


def _read(folder):
    """Of each image: the iterations, and the pictures."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {
        tag: {
            event.step: cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            for event in events.Images(tag)
        }
        for tag in events.Tags()["images"]
    }


def _halves(picture):
    return np.array_split(picture[28:].astype(int), 2, axis=1)


@pytest.mark.parametrize("rle", [False, True], ids=["boxes", "rle"])
def test_tensorboard_has_the_predictions_beside_the_ground_truth(rle, shapes, tmp_path):
    np.random.seed(5)
    pictures = _train(tmp_path / "events", shapes, rle)
    assert np.random.rand() == np.random.RandomState(5).rand()  # the training's random numbers are as without
    assert [tag.split()[0] for tag in pictures] == ["predictions/0", "predictions/1"]
    for drawn in pictures.values():
        assert list(drawn) == [1, 3, 4]  # every second, and the last
        assert drawn[1].shape[0] > 512 and drawn[1].shape[1] > 2 * 512
        truths, predictions = zip(*map(_halves, drawn.values()), strict=True)
        # the ground truth stays, and its colours do; the prediction grows
        assert np.array_equal(truths[0], truths[1]) and np.array_equal(truths[0], truths[2])
        # 20 pixels of 128, and 60, in a picture of 512
        changed = np.abs(predictions[0] - predictions[2]).max(-1)
        assert changed[60:200, 60:200].mean() > 1 and not changed[260:500, 260:500].any()


def test_they_are_of_the_averaged_weights(shapes, tmp_path):
    own, averaged = (
        _train(tmp_path / str(options), shapes, period=0, **options) for options in ({}, {"ema_decay": 0.999})
    )
    tag = next(iter(own))
    assert list(own[tag]) == list(averaged[tag]) == [4]  # the last alone
    assert np.array_equal(_halves(own[tag][4])[0], _halves(averaged[tag][4])[0])
    assert not np.array_equal(_halves(own[tag][4])[1], _halves(averaged[tag][4])[1])


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one image, got 5 and 0"):
        PredictionPictures([], "shapes", None, period=5, num_images=0)
