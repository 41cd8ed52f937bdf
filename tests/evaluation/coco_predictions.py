"""What the tests of the COCO evaluator predict; as a script, one of several processes that evaluate together.

python tests/evaluation/coco_predictions.py RANK WORLD_SIZE ANNOTATIONS RESULTS FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances


def register(name, path):
    """A data set of an annotation file, whose images need not exist, with its class names known."""
    register_coco_instances(name, {}, str(path), "")
    DatasetCatalog.get(name)


def predict(annotations, results, masks):
    """Inputs and outputs of a model that predicts these COCO results; masks is 'bitmask', 'rle', or None for boxes."""
    classes = {id_: i for i, id_ in enumerate(sorted(c["id"] for c in annotations["categories"]))}
    pairs = []
    for image in annotations["images"]:
        found = [result for result in results if result["image_id"] == image["id"]]
        instances = Instances((image["height"], image["width"]))
        boxes = torch.tensor([result["bbox"] for result in found]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        instances.scores = torch.tensor([result["score"] for result in found])
        instances.pred_classes = torch.tensor([classes[r["category_id"]] for r in found], dtype=torch.long)
        if masks == "rle":
            instances.pred_masks_rle = [result["segmentation"] for result in found]
        if masks == "bitmask":
            decoded = [mask_util.decode(result["segmentation"]) for result in found]
            instances.pred_masks = torch.from_numpy(
                np.array(decoded, dtype=bool).reshape(len(found), image["height"], image["width"])
            )
        pairs.append(({"image_id": image["id"]}, {"instances": instances}))
    return pairs


def evaluate(evaluator, pairs, **kwargs):
    """What an evaluator says of such inputs and outputs, in batches of two."""
    evaluator.reset()
    for start in range(0, len(pairs), 2):
        inputs, outputs = zip(*pairs[start : start + 2], strict=True)
        evaluator.process(inputs, outputs)
    return evaluator.evaluate(**kwargs)


def main(rank, world_size, annotation_path, result_path, folder):
    from lift_det.evaluation import COCOEvaluator

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    register("two_processes", annotation_path)
    annotations, results = (json.loads(Path(path).read_text()) for path in (annotation_path, result_path))
    pairs = predict(annotations, results, "rle")[rank::world_size]
    report = evaluate(COCOEvaluator("two_processes", output_dir=f"{folder}/output"), pairs)
    Path(f"{folder}/rank{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
