"""detectron2's LVIS evaluator without the `lvis` package, which needs a numpy of before 1.24."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as _LVISEvaluator
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .coco_instances import prediction_of, with_category_ids
from .hotcoco_metrics import RESULT_FIELDS, check_has, import_hotcoco

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LVISEvaluator(_LVISEvaluator):
    """:class:`detectron2.evaluation.LVISEvaluator`: its arguments, results and files, with hotcoco behind it.

    A figure that cannot be computed (no rare class in the data set, say) is NaN, as COCO's are; detectron2 says -100.
    Masks may come as ``pred_masks`` or ``pred_masks_rle``, as for :class:`COCOEvaluator`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered with LVIS's annotations as ``json_file``.
            tasks: of 'bbox' and 'segm'; left out, what the predictions have.
            distributed, output_dir: as detectron2's.
            max_dets_per_image: of all classes together; left out, LVIS's 300.

        Raises:
            ImportError: hotcoco is not installed.
            ValueError: an unknown task, or the annotation file is no LVIS JSON.
        """
        # not upstream's __init__, which imports lvis
        if not set(tasks or ()) <= set(RESULT_FIELDS):
            raise ValueError(f"tasks must be of {tuple(RESULT_FIELDS)}, got {tasks!r}.")
        self._logger = logging.getLogger(f"detectron2.{__name__}")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = max_dets_per_image
        self._metadata = MetadataCatalog.get(dataset_name)
        path = PathManager.get_local_path(self._metadata.json_file)
        self._hotcoco = import_hotcoco()
        try:
            self._lvis_api = self._hotcoco.LVIS(path)
        except ValueError as error:
            raise ValueError(f"{path}, the annotations of '{dataset_name}', is no LVIS JSON file: {error}") from error
        # those of a test set have none
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As detectron2's: keeps what a model predicts of a batch."""
        self._predictions.extend(prediction_of(*pair) for pair in zip(inputs, outputs, strict=True))

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]]) -> None:
        self._logger.info("Preparing results in the LVIS format ...")
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        to_class = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_class is None:  # LVIS's own categories count from 1
            to_class = {id_: id_ - 1 for id_ in self._lvis_api.get_cat_ids()}
        results = with_category_ids(results, {number: id_ for id_, number in to_class.items()})
        tasks = self._tasks or self._tasks_from_predictions(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "lvis_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        for task in sorted(tasks):
            self._results[task] = self._evaluate_task(results, task)

    def _evaluate_task(self, results: list[dict[str, Any]], task: str) -> dict[str, float]:
        if not results:
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(_METRICS, math.nan)
        limit = 300 if self._max_dets_per_image is None else self._max_dets_per_image
        self._logger.info(f"Evaluating {task} with hotcoco, with max detections per image = {limit}")
        for result in results:
            check_has(result, task)
        # without the boxes, whose area would otherwise count as a mask's
        keys = ("image_id", "category_id", "score", RESULT_FIELDS[task])
        detections = self._hotcoco.LVISResults(
            self._lvis_api, [{key: result[key] for key in keys} for result in results], max_dets=limit
        )
        evaluation = self._hotcoco.LVISEval(self._lvis_api, detections, task)
        evaluation.run()
        evaluation.print_results()
        figures = evaluation.get_results()
        scores = {name: 100 * figures[name] if figures[name] >= 0 else math.nan for name in _METRICS}
        self._logger.info(f"Evaluation results for {task}: \n" + create_small_table(scores))
        return scores
