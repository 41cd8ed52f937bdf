"""Evaluation of LiFT: similarity of upsampled features to the true features."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

logger = logging.getLogger(f"detectron2.{__name__}")

# names in metrics.json and in tables; lift_original is explained in Reconstructions of LiFTPretraining
_METHODS = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lift": "LiFT",
    "lift_original": "LiFT, real image between",
}
_TASKS = {"2x": "2×, half → full", "2x_half": "2×, quarter → half", "4x": "4×, quarter → full"}


class ReconstructionEvaluator(DatasetEvaluator):
    """Averages the scores of :class:`lift_det.modeling.LiFTPretraining` over images, and saves the LiFT.

    Args:
        output_dir: folder for ``lift.safetensors``, which has the LiFT and the scores. If empty, nothing is written.
        training_data: name of the training data, for the metadata.
    """

    def __init__(self, output_dir: str | os.PathLike = "", training_data: str | Sequence[str] = "") -> None:
        self._output_dir = output_dir
        self._training_data = training_data if isinstance(training_data, str) else ", ".join(map(str, training_data))
        self.reset()

    def reset(self) -> None:
        self._scores: list[dict[str, dict[str, float]]] = []
        self._outputs: Any = None

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict[str, dict[str, float]]]) -> None:
        """Stores the :class:`lift_det.modeling.meta_arch.lift_pretraining.Reconstructions` of a batch."""
        self._scores.extend(outputs)
        self._outputs = outputs

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Returns means over the images of all processes, in the main process.

        They are ``cosine_TASK`` (such as ``{"nearest": 0.8, "bilinear": 0.84, "bicubic": 0.83, "lift": 0.9}``),
        ``rel_l2_TASK``, and ``error_reduction_TASK``: the reduction of the error 1 - cosine compared to bilinear, in
        percent. The tasks are ``2x``, ``2x_half`` and ``4x``.

        Raises:
            RuntimeError: there was no image.
        """
        scores_by_process = comm.all_gather(self._scores)
        scores = list(itertools.chain.from_iterable(scores_by_process))
        if not scores:
            raise RuntimeError("There was no image to evaluate on. dataloader.test needs a folder with images.")
        results = {
            figure: {name: float(np.mean([score[figure][name] for score in scores])) for name in values}
            for figure, values in scores[0].items()
        }
        for task in [name.removeprefix("cosine_") for name in results if name.startswith("cosine_")]:
            errors = {name: 1 - cosine for name, cosine in results[f"cosine_{task}"].items()}
            results[f"error_reduction_{task}"] = {
                name: 100 * (1 - error / errors["bilinear"])
                for name, error in errors.items()
                if name.startswith("lift")
            }
        # all processes have the same LiFT, and the main one may have had no readable image
        first_with_images = next(rank for rank, found in enumerate(scores_by_process) if found)
        if self._output_dir and comm.get_rank() == first_with_images:
            self._save_lift(results, len(scores))
        if not comm.is_main_process():
            return {}
        logger.info("Features of %d images against the true ones:\n%s", len(scores), reconstruction_table(results))
        return results

    def _save_lift(self, results: Mapping[str, Mapping[str, float]], num_images: int) -> None:
        os.makedirs(self._output_dir, exist_ok=True)
        path = os.path.join(self._output_dir, "lift.safetensors")
        rounded = {task: {name: float(f"{x:.5g}") for name, x in values.items()} for task, values in results.items()}
        metadata = {"evaluated_images": str(num_images), "reconstruction": json.dumps(rounded)}
        self._outputs.save_lift(path, {"training_data": self._training_data, **metadata})
        logger.info("LiFT written to '%s'.", path)


def reconstruction_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Formats results of :class:`ReconstructionEvaluator` as a Markdown table.

    A cell has the cosine similarity, the relative L2 error, and for LiFT the error reduction from bilinear in percent.
    """
    rows = []
    for method, label in _METHODS.items():
        cells = []
        for task in _TASKS:
            cell = ""
            if method in results[f"cosine_{task}"]:
                cell = f"{results[f'cosine_{task}'][method]:.4f} / {results[f'rel_l2_{task}'][method]:.4f}"
            if method in results[f"error_reduction_{task}"]:
                cell += f" / {results[f'error_reduction_{task}'][method]:.1f}"
            cells.append(cell)
        if any(cells):
            rows.append([label, *cells])
    headers = ["cosine / relative L2 error / error reduction in %", *_TASKS.values()]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
