"""detectron2's COCO and LVIS evaluators, based on hotcoco and with support for RLE masks."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from detectron2.evaluation import LVISEvaluator as _LVISEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.evaluation.coco_evaluation import instances_to_coco_json as _instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools.cocoeval import COCOeval

from .hotcoco_metrics import RESULT_FIELDS, evaluate_with_hotcoco, import_hotcoco

_LVIS_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def instances_to_coco_json(instances: Instances, image_id: Any) -> list[dict[str, Any]]:
    """Converts instances to COCO results, like detectron2's function, and supports ``pred_masks_rle``.

    Args:
        instances: on the CPU. ``pred_masks_rle`` is a list of compressed RLEs of the whole image, ``{"size": [height,
            width], "counts": bytes or str}``, as from ``GeneralizedRCNN(mask_format="rle")``. It takes precedence over
            ``pred_masks``.
        image_id: id of the image in the dataset.
    """
    if not instances.has("pred_masks_rle"):
        return _instances_to_coco_json(instances, image_id)
    fields = {name: value for name, value in instances.get_fields().items() if not name.startswith("pred_masks")}
    results = _instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    for result, rle in zip(results, instances.pred_masks_rle, strict=True):
        size, counts = [int(side) for side in rle["size"]], rle["counts"]
        counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
        result["segmentation"] = {"size": size, "counts": counts}
    return results


def with_category_ids(results: Iterable[dict[str, Any]], to_category: Mapping[int, Any]) -> list[dict[str, Any]]:
    """Returns copies of COCO results with category ids instead of class indices.

    Raises:
        ValueError: a class index is missing in ``to_category`` (class index -> category id).
    """
    mapped = []
    for result in results:
        if result["category_id"] not in to_category:
            raise ValueError(
                f"A prediction has class {result['category_id']}, but the dataset has the classes {min(to_category)} "
                f"to {max(to_category)}. Does the model's num_classes fit the dataset?"
            )
        mapped.append({**result, "category_id": to_category[result["category_id"]]})
    return mapped


class _InstanceEvaluator:
    """Mixin with RLE masks, category ids and the results file.

    Subclasses define ``_results_file``, ``_category_ids`` (category id -> class index) and ``_evaluate_task``.
    """

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Stores the predictions of a batch."""
        for image, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": image["image_id"]}
            if "instances" in output:
                prediction["instances"] = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to("cpu")
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[Any] | None = None) -> None:
        results = [result for prediction in predictions for result in prediction["instances"]]
        category_ids = self._category_ids()
        if category_ids is not None:
            results = with_category_ids(results, {number: id_ for id_, number in category_ids.items()})
        if self._output_dir:
            path = os.path.join(self._output_dir, self._results_file)
            self._logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            field = RESULT_FIELDS[task]
            for result in results:
                if field not in result:
                    raise ValueError(
                        f"A detection in image {result['image_id']!r} has no {field!r}, which the task {task!r} needs. "
                        "If the model has no head for the task, remove the task from `tasks`."
                    )
            self._results[task] = self._evaluate_task(results, task, img_ids)


class COCOEvaluator(_InstanceEvaluator, _COCOEvaluator):
    """Faster drop-in for :class:`detectron2.evaluation.COCOEvaluator`, with the same results and files.

    Boxes and masks are evaluated with hotcoco, keypoints with pycocotools; see docs/evaluation.md. Masks may be
    ``pred_masks`` or ``pred_masks_rle`` (:func:`instances_to_coco_json`).

    Args:
        dataset_name, tasks, args, kwargs: see detectron2.
        use_fast_impl: False selects pycocotools if ``implementation`` is None.
        implementation: ``"hotcoco"`` (default) or ``"pycocotools"``. There is no fallback from one to the other.

    Raises:
        ImportError: hotcoco is selected but not installed.
        ValueError: the implementation or a task is unknown, or the annotation file is not COCO JSON.
    """

    _results_file = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        *args: Any,
        use_fast_impl: bool = True,
        implementation: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._implementation = implementation or ("hotcoco" if use_fast_impl else "pycocotools")
        if self._implementation not in ("hotcoco", "pycocotools"):
            raise ValueError(f"implementation must be 'hotcoco' or 'pycocotools', got {implementation!r}.")
        if self._implementation == "hotcoco":
            import_hotcoco()  # raises before the inference
        # detectron2 also accepts a yacs config, which is a dict
        if not isinstance(tasks, dict) and not set(tasks or ()) <= set(RESULT_FIELDS):
            raise ValueError(f"tasks must be from {tuple(RESULT_FIELDS)}, got {tasks!r}.")
        try:
            super().__init__(dataset_name, tasks, *args, use_fast_impl=False, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError, AssertionError) as error:
            path = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"'{path}', the annotations of '{dataset_name}', is not COCO JSON: {error}") from error
        self._logger = logging.getLogger(f"detectron2.{__name__}")

    def _category_ids(self) -> dict[Any, int] | None:
        return self._metadata.get("thing_dataset_id_to_contiguous_id")

    def _evaluate_task(self, results: list[dict], task: str, img_ids: Sequence[Any] | None) -> dict[str, float]:
        implementation = "pycocotools" if task == "keypoints" else self._implementation
        self._logger.info(f"Evaluating {task} with {implementation} ...")
        if not results:
            evaluation = None
        elif implementation == "hotcoco":
            content, source = self._coco_api.dataset, self._metadata.json_file
            evaluation = evaluate_with_hotcoco(content, results, task, source, img_ids, self._max_dets_per_image)
        else:
            evaluation = _evaluate_predictions_on_coco(
                self._coco_api,
                [dict(result) for result in results],  # pycocotools modifies them
                task,
                kpt_oks_sigmas=self._kpt_oks_sigmas,
                cocoeval_fn=COCOeval,
                img_ids=img_ids,
                max_dets_per_image=self._max_dets_per_image,
            )
        return self._derive_coco_results(evaluation, task, class_names=self._metadata.get("thing_classes"))


class LVISEvaluator(_InstanceEvaluator, _LVISEvaluator):
    """:class:`detectron2.evaluation.LVISEvaluator` without the `lvis` package, which does not support numpy >= 1.24.

    Metrics that are undefined, such as APr without rare classes, are NaN as for COCO, and not -100. Masks may be
    ``pred_masks`` or ``pred_masks_rle``; see :class:`COCOEvaluator`.

    Args:
        dataset_name: registered with LVIS annotations as ``json_file``.
        tasks: ``"bbox"`` and ``"segm"``. By default those of the predictions.
        distributed, output_dir: see detectron2.
        max_dets_per_image: largest number of detections per image, over all classes (default: 300).

    Raises:
        ImportError: hotcoco is not installed.
        ValueError: a task is unknown, or the annotation file is not LVIS JSON.
    """

    _results_file = "lvis_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        # upstream's __init__ is not called, because it imports lvis
        if not set(tasks or ()) <= {"bbox", "segm"}:
            raise ValueError(f"tasks must be from ('bbox', 'segm'), got {tasks!r}.")
        self._logger = logging.getLogger(f"detectron2.{__name__}")
        self._tasks, self._distributed, self._output_dir = tasks, distributed, output_dir
        self._max_dets_per_image = 300 if max_dets_per_image is None else max_dets_per_image
        self._metadata = MetadataCatalog.get(dataset_name)
        path = PathManager.get_local_path(self._metadata.json_file)
        try:
            self._lvis_api = import_hotcoco().LVIS(path)
        except ValueError as error:
            raise ValueError(f"'{path}', the annotations of '{dataset_name}', is not LVIS JSON: {error}") from error
        # test sets have no annotations
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def _category_ids(self) -> dict[Any, int]:
        # LVIS's category ids start from 1
        default = {id_: id_ - 1 for id_ in self._lvis_api.get_cat_ids()}
        return self._metadata.get("thing_dataset_id_to_contiguous_id", default)

    def _evaluate_task(self, results: list[dict], task: str, img_ids: Sequence[Any] | None) -> dict[str, float]:
        if not results:
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(_LVIS_METRICS, math.nan)
        self._logger.info(f"Evaluating {task} with hotcoco, at most {self._max_dets_per_image} detections per image")
        # only the field of the task: with a box, the area of a mask would be that of the box
        keys = ("image_id", "category_id", "score", RESULT_FIELDS[task])
        results = [{key: result[key] for key in keys} for result in results]
        hotcoco = import_hotcoco()
        detections = hotcoco.LVISResults(self._lvis_api, results, max_dets=self._max_dets_per_image)
        evaluation = hotcoco.LVISEval(self._lvis_api, detections, task)
        evaluation.run()
        evaluation.print_results()
        figures = evaluation.get_results()
        scores = {name: 100 * figures[name] if figures[name] >= 0 else math.nan for name in _LVIS_METRICS}
        self._logger.info(f"Evaluation results for {task}: \n" + create_small_table(scores))
        return scores
