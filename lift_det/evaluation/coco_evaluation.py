"""detectron2's COCO evaluator with a quick library behind it, and with masks that come as RLE."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.utils.file_io import PathManager
from pycocotools.cocoeval import COCOeval

from .coco_instances import prediction_of, with_category_ids
from .hotcoco_metrics import RESULT_FIELDS, HotcocoGroundTruth, import_hotcoco

IMPLEMENTATIONS = ("hotcoco", "pycocotools")
TASKS = ("bbox", "segm", "keypoints")


class COCOEvaluator(_COCOEvaluator):
    """:class:`detectron2.evaluation.COCOEvaluator`: its arguments, its results and files, in a fraction of the time.

    Boxes and masks are evaluated by hotcoco, keypoints always by pycocotools. docs/evaluation.md has the comparison.
    Models may give their masks as ``pred_masks``, or as ``pred_masks_rle`` (see :func:`instances_to_coco_json`).
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
        implementation: str | None = None,
    ) -> None:
        """
        Args:
            dataset_name, tasks, distributed, output_dir, kpt_oks_sigmas, allow_cached_coco: as detectron2's.
            max_dets_per_image: detections of a class that count in an image, by default 100. As in detectron2, 10
                count where it is less than that.
            use_fast_impl: detectron2's way to choose: False is ``implementation="pycocotools"``.
            implementation: 'hotcoco', or 'pycocotools' for COCO's own code. None goes by ``use_fast_impl``. What is
                chosen is used or raises: neither stands in for the other.

        Raises:
            ImportError: 'hotcoco' is chosen and not installed.
            ValueError: an argument is unknown or contradicts another, or the annotation file is no COCO JSON.
        """
        if implementation is None:
            implementation = "hotcoco" if use_fast_impl else "pycocotools"
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}.")
        if implementation == "hotcoco":
            if not use_fast_impl:
                raise ValueError("use_fast_impl=False asks for pycocotools, implementation='hotcoco' does not.")
            import_hotcoco()  # now, and not after an hour of inference
        # yacs's CfgNode, which detectron2 still takes here, is a dict
        if not isinstance(tasks, dict) and not set(tasks or ()) <= set(TASKS):
            raise ValueError(f"tasks must be of {TASKS}, got {tasks!r}.")
        try:
            super().__init__(
                dataset_name,
                tasks,
                distributed,
                output_dir,
                max_dets_per_image=max_dets_per_image,
                use_fast_impl=False,  # that is another implementation again, which only a compiled detectron2 has
                kpt_oks_sigmas=kpt_oks_sigmas,
                allow_cached_coco=allow_cached_coco,
            )
        except (json.JSONDecodeError, UnicodeDecodeError, AssertionError) as error:
            source = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"{source}, the annotations of '{dataset_name}', is no COCO JSON file: {error}") from error
        self._logger = logging.getLogger(f"detectron2.{__name__}")
        self._implementation = implementation
        self._ground_truth: HotcocoGroundTruth | None = None

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As detectron2's: keeps what a model predicts of a batch."""
        predictions = (prediction_of(image, output) for image, output in zip(inputs, outputs, strict=True))
        self._predictions.extend(prediction for prediction in predictions if len(prediction) > 1)

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[Any] | None = None) -> None:
        self._logger.info("Preparing results for COCO format ...")
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        to_class = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_class is not None:
            results = with_category_ids(results, {number: id_ for id_, number in to_class.items()})
        tasks = self._tasks or self._tasks_from_predictions(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        for task in sorted(tasks):
            evaluation = self._evaluate_task(results, task, img_ids) if results else None
            self._results[task] = self._derive_coco_results(
                evaluation, task, class_names=self._metadata.get("thing_classes")
            )

    def _evaluate_task(self, results: list[dict[str, Any]], task: str, img_ids: Sequence[Any] | None) -> Any:
        """One task's COCOeval, of either library, summarised."""
        if self._implementation == "hotcoco" and task in RESULT_FIELDS:
            self._logger.info(f"Evaluating {task} with hotcoco ...")
            if self._ground_truth is None:
                self._ground_truth = HotcocoGroundTruth(self._coco_api.dataset, self._metadata.json_file)
            return self._ground_truth.evaluate(results, task, image_ids=img_ids, max_dets=self._max_dets_per_image)
        self._logger.info(f"Evaluating {task} with pycocotools, the official COCO API ...")
        return _evaluate_predictions_on_coco(
            self._coco_api,
            [dict(result) for result in results],  # pycocotools writes into them
            task,
            kpt_oks_sigmas=self._kpt_oks_sigmas,
            cocoeval_fn=COCOeval,
            img_ids=img_ids,
            max_dets_per_image=self._max_dets_per_image,
        )
