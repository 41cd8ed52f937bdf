# COCO with ViTDet's large-scale jitter: flip, scale by 0.1 to 2.0, crop to 1024 (arXiv 2203.16527, appendix A.2).
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from lift_det.data import DatasetMapper, get_dataset_dicts
from lift_det.evaluation import COCOEvaluator

image_size = 1024

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
for _split in (dataloader.train, dataloader.test):
    _split.dataset._target_ = get_dataset_dicts  # detectron2's, with clearer errors
    _split.mapper._target_ = DatasetMapper
dataloader.evaluator._target_ = COCOEvaluator  # detectron2's, faster, and reads masks as RLE

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=image_size, target_width=image_size),
    # no padding here: the model pads (square_pad), so that images stay small until then
    L(T.FixedSizeCrop)(crop_size=(image_size, image_size), pad=False),
]
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.recompute_boxes = True  # crops cut objects
dataloader.train.total_batch_size = 64

dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=image_size, max_size=image_size),
]
