# Mask R-CNN, ViTDet-H with LiFT (dense).
# MAE's patches of 14 pixels were resampled to 16 for ViTDet.
from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_huge_p14to16.pth?matching_heuristics=True"

model.backbone.net.embed_dim = 1280
model.backbone.net.depth = 32
model.backbone.net.num_heads = 16
model.backbone.net.drop_path_rate = 0.5
# 7, 15, 23, 31 attend globally
model.backbone.net.window_block_indexes = [i for i in range(32) if i % 8 != 7]

optimizer.params.lr_factor_func.update(lr_decay_rate=0.9, num_layers=32)
optimizer.params.overrides = {}
optimizer.params.weight_decay_norm = None

train.epochs = 75
