"""Pictures of a detector's predictions during its training, for TensorBoard."""

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
    """Draws the predictions on a few images beside their ground truth, for TensorBoard's tab Images.

    A trainer that averages the weights predicts with the averaged ones. The random numbers of the training do not
    change. docs/own_data.md has the lines of a config.
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
        """
        Args:
            dataset: detectron2's dicts, with annotations.
            dataset_name: the registered name; of several the first.
            mapper: makes the model's input from a dataset dict, as the test loader's does.
            period: in iterations. The last iteration is always drawn, and with 0 only that one.
            num_images: number of images, from the first.
            score_threshold: lowest score of the predictions that are drawn.
        """
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
        # a DistributedDataParallel's forward would wait for the other processes
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
