# Mask R-CNN, ViTDet-B with LiFT (fast), 12 epochs on one GPU.
# Batch 4 with activation checkpointing. Meant for 24 GB, not measured on such a GPU yet.
from .mask_rcnn_lift_vitdet_b_fast_100ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 4
model.backbone.net.use_act_checkpoint = True
optimizer.lr = 1e-4 * 4 / 64  # detectron2's linear rule
train.epochs = 12
lr_multiplier.warmup_length = 1000 / 354000
