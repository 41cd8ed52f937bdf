# ViTDet's Mask R-CNN as detectron2's model zoo has it, in lift_det's classes: same keys, same outputs.
from detectron2 import model_zoo

from lift_det.modeling import GeneralizedRCNN, LiFTFeaturePyramid, ViT

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model._target_ = GeneralizedRCNN
model.allow_partial = []
model.mask_format = "bitmask"  # "rle": a tenth of the time, where the evaluator or another reader takes RLE
model.backbone._target_ = LiFTFeaturePyramid
model.backbone.net._target_ = ViT
model.backbone.lift = None
model.backbone.pop("scale_factors")  # the pyramid derives them from its levels' strides
model.backbone.level_strides = (4, 8, 16, 32)
model.backbone.steps = 1
model.backbone.input_scale = 1.0
model.backbone.freeze_net = False
model.backbone.freeze_lift = False
