"""Pictures of what a detector predicts while it trains, for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from .detections import picture_predictions


class PredictionPictures(HookBase):
    """Draws the predictions on a few images beside their ground truth, again and again, for TensorBoard.

    They come with the rest of what ``tensorboard --logdir OUTPUT_DIR`` shows, under "predictions", one for each image,
    and a slider goes through the training. A trainer that averages the weights predicts with the averaged ones. Only
    the main process draws, and it leaves the random numbers of the training as they were.

    In a config::

        train.hooks = [
            L(PredictionPictures)(
                dataset="${dataloader.test.dataset}",
                dataset_name="${dataloader.test.dataset.names}",
                mapper="${dataloader.test.mapper}",
                period=1000,
            )
        ]
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
            dataset: detectron2's dicts, with annotations; the first ones are drawn.
            dataset_name: under which it is registered, for the class names; of several the first.
            mapper: makes the model's input of a dataset dict: the test loader's.
            period: iterations from one drawing to the next; the last iteration is drawn, too, and with 0 it alone.
            num_images: how many, from the first on.
            score_threshold: predictions below it are not drawn.

        Raises:
            ValueError: a negative period, or no images.
        """
        if period < 0 or num_images < 1:
            raise ValueError(f"Expected a period from 0 on and at least one image, got {period} and {num_images}.")
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
        if isinstance(model, DistributedDataParallel):  # whose forward would wait for the other processes
            model = model.module
        averages = getattr(self.trainer, "ema", None)
        random_state = np.random.get_state()  # mappers draw numbers, too
        try:
            with averages.applied() if averages is not None else contextlib.nullcontext():
                metadata = MetadataCatalog.get(self.dataset_name)
                for i, image in enumerate(self._images):
                    picture = picture_predictions(model, image, metadata, self.mapper, self.score_threshold)
                    name = f"predictions/{i} {Path(image['file_name']).stem}"
                    self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))  # (3, h, w)
        finally:
            np.random.set_state(random_state)
