# ViTDet's Mask R-CNN of detectron2's model zoo with lift_det's classes: the same state dict and the same detections.
from detectron2 import model_zoo

from lift_det.modeling import GeneralizedRCNN, LiFTFeaturePyramid, ViT

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model._target_ = GeneralizedRCNN
model.ignore_mismatch = []
# Masks as COCO's RLE (pred_masks_rle), in a tenth of the time. lift_det's evaluators read them; for detectron2's and
# other readers of pred_masks use "bitmask". lift_det.Predictor and load_model always give pred_masks.
model.mask_format = "rle"
model.backbone._target_ = LiFTFeaturePyramid
model.backbone.net._target_ = ViT
model.backbone.lift = None
model.backbone.pop("scale_factors")  # the pyramid derives them from its levels' strides
model.backbone.level_strides = (4, 8, 16, 32)
model.backbone.steps = 1
model.backbone.input_scale = 1.0
model.backbone.freeze_net = False
model.backbone.freeze_lift = False
