"""A tiny Mask R-CNN with LiFT, and the output folder of its training."""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate

from lift_det import model_zoo

IMAGE_SIZE = 64


def tiny_config(test_size=IMAGE_SIZE):
    """The quick schedules' Mask R-CNN on 64 pixels, with images resized to ``test_size`` on their longer side."""
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.py")
    net = cfg.model.backbone.net
    net.embed_dim = 32
    net.img_size = cfg.model.backbone.square_pad = IMAGE_SIZE
    net.depth, net.num_heads, net.residual_block_indexes = 1, 2, []
    cfg.model.proposal_generator.post_nms_topk = [50, 20]
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 5
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.dataloader.test.mapper.augmentations = [
        LazyCall(T.ResizeShortestEdge)(short_edge_length=test_size, max_size=test_size)
    ]
    return cfg


def write_output_folder(folder, cfg=None, seed=0):
    """``config.yaml`` and a checkpoint of an untrained model whose predictions depend on the image."""
    cfg = cfg or tiny_config()
    folder.mkdir(parents=True)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = instantiate(cfg.model)
        with torch.no_grad():  # the scores of new heads are nearly equal
            model.roi_heads.box_predictor.cls_score.weight.mul_(30)
            model.roi_heads.box_predictor.bbox_pred.weight.mul_(300)
            model.roi_heads.mask_head.predictor.weight.mul_(1000)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder
