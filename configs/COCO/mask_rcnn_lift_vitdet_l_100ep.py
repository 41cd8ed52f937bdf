# Mask R-CNN, ViTDet-L with LiFT (dense).
from .mask_rcnn_lift_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_large.pth?matching_heuristics=True"

model.backbone.net.embed_dim = 1024
model.backbone.net.depth = 24
model.backbone.net.num_heads = 16
model.backbone.net.drop_path_rate = 0.4
# 5, 11, 17, 23 attend globally
model.backbone.net.window_block_indexes = [i for i in range(24) if i % 6 != 5]

optimizer.params.lr_factor_func.update(lr_decay_rate=0.8, num_layers=24)
