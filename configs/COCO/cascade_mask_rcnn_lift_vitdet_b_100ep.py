# Cascade Mask R-CNN, ViTDet-B with LiFT (dense).
# The heads are those of detectron2's projects/ViTDet.
from detectron2 import model_zoo

from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

_cascade = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads

# arguments that a cascade has three of
for name in ("box_head", "box_predictor", "proposal_matcher"):
    model.roi_heads.pop(name)
model.roi_heads._target_ = _cascade._target_
for name in ("box_heads", "box_predictors", "proposal_matchers"):
    model.roi_heads[name] = _cascade[name]
for _head in model.roi_heads.box_heads:
    _head.conv_dims = [256, 256, 256, 256]
    _head.fc_dims = [1024]
    _head.conv_norm = "LN"
