# One GPU: the fast way, batch 4, activation checkpointing. Meant for 24 GB, not measured on one yet.
from .mask_rcnn_lift_vitdet_b_fast_100ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 4
model.backbone.net.use_act_checkpoint = True
optimizer.lr = 1e-4 * 4 / 64  # detectron2's linear rule

# 12 ep = 354000 iters * 4 images/iter / 118000 images/ep; steps at 8/9 and 26/27 as in the 100 epochs
train.max_iter = 354000
lr_multiplier.scheduler.milestones = [train.max_iter * 8 // 9, train.max_iter * 26 // 27]
lr_multiplier.scheduler.num_updates = train.max_iter
lr_multiplier.warmup_length = 1000 / train.max_iter
