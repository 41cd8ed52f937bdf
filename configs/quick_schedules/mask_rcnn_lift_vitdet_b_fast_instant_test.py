# Test of mask_rcnn_lift_vitdet_b_fast_100ep on a CPU: two iterations, two images of val2017.
from .mask_rcnn_lift_vitdet_b_instant_test import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/instant_test_fast"
model.backbone.input_scale = 0.5
