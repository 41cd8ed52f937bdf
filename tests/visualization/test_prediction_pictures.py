import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine.hooks import PeriodicWriter
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import TensorboardXWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lift_det.data import write_synthetic_coco
from lift_det.engine import Trainer
from lift_det.visualization import PredictionPictures


class Growing(nn.Module):
    """Predicts one square, as large as its weight, which grows by 10 in each step."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(10.0))

    def forward(self, batch):
        if self.training:
            return {"loss": -self.size}
        size = self.size.item()
        instances = Instances((128, 128), pred_boxes=Boxes(torch.tensor([[0.0, 0.0, size, size]])))
        instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([0.9])
        return [{"instances": instances}]


def train(folder, period, **options):
    """Trains for 5 steps; returns {tag: {step: picture}} as TensorBoard shows them."""
    data = write_synthetic_coco(folder, num_train=1, num_val=3)
    name = str(folder)
    register_coco_instances(name, {}, str(data / "annotations/instances_val.json"), str(data / "val"))
    model = Growing()
    trainer = Trainer(model, [[{}]] * 5, torch.optim.SGD(model.parameters(), lr=10.0), **options)
    pictures = PredictionPictures(DatasetCatalog.get(name), [name], lambda image: image, period=period, num_images=2)
    trainer.register_hooks([pictures, PeriodicWriter([TensorboardXWriter(str(folder / "events"))], period=3)])
    trainer.train(0, 5)
    assert model.training and model.size == 60
    events = EventAccumulator(str(folder / "events"), size_guidance={"images": 0}).Reload()
    return {
        tag: {
            event.step: cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            for event in events.Images(tag)
        }
        for tag in events.Tags()["images"]
    }


def halves(picture):
    """The ground truth and the prediction, 512 pixels wide, without titles and margins."""
    return [picture[34:546, left : left + 512].astype(int) for left in (6, 524)]


def test_tensorboard_has_predictions_beside_the_ground_truth(tmp_path):
    np.random.seed(5)
    pictures = train(tmp_path / "own", period=2)
    assert np.random.rand() == np.random.RandomState(5).rand()  # the training's random numbers do not change
    assert [tag.split()[0] for tag in pictures] == ["predictions/0", "predictions/1"]
    for drawn in pictures.values():
        assert list(drawn) == [1, 3, 4]  # every second, and the last
        truths, predictions = zip(*map(halves, drawn.values()), strict=True)
        assert np.array_equal(truths[0], truths[1]) and np.array_equal(truths[0], truths[2])
        # the prediction grows from 20 to 60 pixels of 128
        changed = np.abs(predictions[0] - predictions[2]).max(-1)
        assert changed[60:250, 60:250].mean() > 1 and not changed[260:, 260:].any()
    # of the averaged weights, and after the last step only
    averaged = next(iter(train(tmp_path / "averaged", period=0, ema_decay=0.999).values()))
    own = next(iter(pictures.values()))
    assert list(averaged) == [4]
    (truth, prediction), (same_truth, other) = halves(own[4]), halves(averaged[4])
    assert np.array_equal(truth, same_truth) and not np.array_equal(prediction, other)
