"""How near lifted features come to the true ones, always beside nearest, bilinear and bicubic interpolation."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from lift_det.visualization import plot_reconstruction

logger = logging.getLogger(f"detectron2.{__name__}")

Figures = Mapping[str, Mapping[str, float]]

# in the order of tables and pictures; Reconstructions explains lift_original
_METHODS = ("nearest", "bilinear", "bicubic", "lift", "lift_original")
_TASKS = {"2x": "2×, half → full", "2x_half": "2×, quarter → half", "4x": "4×, quarter → full"}
_LABELS = {"lift": "LiFT", "lift_original": "LiFT, real image between"}


class ReconstructionEvaluator(DatasetEvaluator):
    """Averages what :class:`lift_det.modeling.LiFTPretraining` gives in evaluation, and writes the LiFT.

    With an ``output_dir`` each evaluation leaves ``lift.safetensors`` (the LiFT with its metadata and these figures)
    and ``reconstruction.png`` there, each whole or not at all.
    """

    def __init__(self, output_dir: str | os.PathLike = "", training_data: str | Sequence[str] = "") -> None:
        """
        Args:
            output_dir: of the training; empty writes nothing.
            training_data: what the LiFT is trained on, for its metadata.
        """
        self._output_dir = output_dir
        self._training_data = training_data if isinstance(training_data, str) else ", ".join(map(str, training_data))
        self.reset()

    def reset(self) -> None:
        self._scores: list[dict[str, dict[str, float]]] = []
        self._outputs: Any = None

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict[str, dict[str, float]]]) -> None:
        """Takes a batch's :class:`lift_det.modeling.meta_arch.lift_pretraining.Reconstructions`."""
        self._scores.extend(outputs)
        self._outputs = outputs

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """
        Returns:
            Means over all images of all processes: ``{"cosine_2x": {"nearest": …, "bilinear": …, "bicubic": …,
            "lift": …}, "rel_l2_2x": …}``, ``2x_half`` and ``4x`` in the same form, and ``"error_reduction_2x"`` …: by
            how many percent the error 1 − cosine is below bilinear's.

        Raises:
            RuntimeError: there was no image.
        """
        scores = list(itertools.chain.from_iterable(comm.gather(self._scores)))
        if not comm.is_main_process():
            return OrderedDict()
        if not scores:
            raise RuntimeError("The evaluation saw no image: name a folder with images for dataloader.test.")
        results: OrderedDict[str, dict[str, float]] = OrderedDict(
            (figure, {name: float(np.mean([score[figure][name] for score in scores])) for name in values})
            for figure, values in scores[0].items()
        )
        for figure in [name for name in results if name.startswith("cosine_")]:
            cosines = results[figure]
            results[figure.replace("cosine", "error_reduction")] = {
                name: 100 * (1 - (1 - value) / (1 - cosines["bilinear"]))
                for name, value in cosines.items()
                if name.startswith("lift")
            }
        logger.info("Features of %d images against the true ones:\n%s", len(scores), reconstruction_table(results))
        if self._output_dir:
            if self._outputs is None:
                raise RuntimeError("The main process could read none of its images, see the warnings above.")
            os.makedirs(self._output_dir, exist_ok=True)
            errors = {
                _LABELS.get(method, method): [1 - results[f"cosine_{task}"].get(method, np.nan) for task in _TASKS]
                for method in _methods(results)
            }
            plot_reconstruction(errors, list(_TASKS.values()), os.path.join(self._output_dir, "reconstruction.png"))
            path = os.path.join(self._output_dir, "lift.safetensors")
            self._outputs.save_lift(
                path,
                {
                    "training_data": self._training_data,
                    "evaluated_images": str(len(scores)),
                    "reconstruction": json.dumps(
                        {k: {n: float(f"{x:.5g}") for n, x in v.items()} for k, v in results.items()}
                    ),
                },
            )
            logger.info("LiFT written to '%s'.", path)
        return results


def reconstruction_table(results: Figures) -> str:
    """The figures of :class:`ReconstructionEvaluator` as a Markdown table.

    A row is a method, a column a task; each cell has the cosine similarity, the relative L2 error and, for LiFT, by how
    much the error 1 − cosine is below bilinear's.
    """
    rows = []
    for method in _methods(results):
        row = [_LABELS.get(method, method)]
        for task in _TASKS:
            if method not in results[f"cosine_{task}"]:
                row.append("")
                continue
            cell = f"{results[f'cosine_{task}'][method]:.4f} / {results[f'rel_l2_{task}'][method]:.4f}"
            reduction = results[f"error_reduction_{task}"].get(method)
            row.append(cell if reduction is None else f"{cell} ({-reduction:+.1f} %)")
        rows.append(row)
    header = ["cosine / relative L2", *_TASKS.values()]
    return tabulate(rows, headers=header, tablefmt="github", disable_numparse=True)


def _methods(results: Figures) -> list[str]:
    """Those that have figures for any task."""
    return [method for method in _METHODS if any(method in results[f"cosine_{task}"] for task in _TASKS)]
