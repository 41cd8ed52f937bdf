"""A hook that shows predictions in TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from .detections import picture_predictions


class PredictionPictures(HookBase):
    """Draws predictions beside the ground truth of a few images, for the Images tab of TensorBoard.

    Averaged weights are used if the trainer has them. The random numbers of the training are not affected. See
    docs/own_data.md for an example.

    Args:
        dataset: detectron2's dicts, with annotations.
        dataset_name: registered name. Of several names the first is used.
        mapper: converts a dataset dict to the model's input, like the mapper of the test loader.
        period: in iterations. The last iteration is always drawn; with 0, only the last.
        num_images: number of images, taken from the start of the dataset.
        score_threshold: smallest score of predictions to draw.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        dataset_name: str | Sequence[str],
        mapper: Callable[[dict], dict],
        period: int,
        num_images: int = 4,
        score_threshold: float = 0.5,
    ) -> None:
        if period < 0 or num_images < 1:
            raise ValueError(f"Expected period >= 0 and num_images >= 1, got {period} and {num_images}.")
        self.dataset_name = dataset_name if isinstance(dataset_name, str) else dataset_name[0]
        self.mapper = mapper
        self.period = period
        self.score_threshold = score_threshold
        self._images = list(dataset[:num_images]) if comm.is_main_process() else []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._images and (done == self.trainer.max_iter or (self.period and done % self.period == 0)):
            self._draw()

    def _draw(self) -> None:
        model = self.trainer.model
        averages = getattr(self.trainer, "ema", None)
        # DistributedDataParallel would wait for the other processes
        if averages is not None or isinstance(model, DistributedDataParallel):
            model = (averages or model).module
        random_state = np.random.get_state()  # mappers draw random numbers
        try:
            metadata = MetadataCatalog.get(self.dataset_name)
            for i, image in enumerate(self._images):
                picture = picture_predictions(model, image, metadata, self.mapper, self.score_threshold)
                name = f"predictions/{i} {Path(image['file_name']).stem}"
                self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))  # (3, h, w)
        finally:
            np.random.set_state(random_state)
