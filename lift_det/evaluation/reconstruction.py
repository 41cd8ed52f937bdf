"""How near lifted features come to the true ones, always beside bilinear upsampling."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ReconstructionEvaluator(DatasetEvaluator):
    """Averages the cosine similarities that :class:`lift_det.engine.LiFTPretraining` gives in evaluation."""

    def reset(self) -> None:
        self._scores: list[dict[str, float]] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict[str, float]]) -> None:
        self._scores.extend(outputs)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Returns ``{"cosine_2x": {"lift": …, "bilinear": …}}``, means over all images of all processes."""
        scores = list(itertools.chain.from_iterable(comm.gather(self._scores)))
        if not comm.is_main_process():
            return OrderedDict()
        return OrderedDict(cosine_2x={name: float(np.mean([s[name] for s in scores])) for name in scores[0]})
