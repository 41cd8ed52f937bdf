#!/usr/bin/env python
"""Trains or evaluates a yacs config (.yaml), like detectron2's script of this name.

    python tools/train_net.py --config-file configs/COCO/mask_rcnn_lift_vitdet_b_100ep.yaml --num-gpus 8
    python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS model_final.pth

For new work, prefer a LazyConfig (tools/lazyconfig_train_net.py), which also has ViTDet's data loader.
"""

import argparse
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, default_argument_parser, default_setup
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver.build import build_optimizer, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from lift_det import config
from lift_det.data import DatasetMapper, get_dataset_dicts
from lift_det.engine import Checkpointer, LayerDecay, get_optimizer_params, launch
from lift_det.evaluation import COCOEvaluator


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer with ViTDet's optimizer, lift_det's evaluator, datasets and checkpoints."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        dataset = get_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True), dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        return build_detection_test_loader(
            get_dataset_dicts(dataset_name, filter_empty=False),
            mapper=DatasetMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ValueError(f"SOLVER.OPTIMIZER must be 'ADAMW' or 'SGD', got '{cfg.SOLVER.OPTIMIZER}'.")
        params = get_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=LayerDecay(
                cfg.SOLVER.VIT_LR_DECAY_RATE, model.backbone.net.depth, lift_lr_rate=cfg.SOLVER.LIFT_LR_RATE
            ),
            overrides={"pos_embed": {"weight_decay": 0.0}},
        )
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    def build_hooks(self) -> list[HookBase]:
        # before the hooks get a reference to detectron2's checkpointer
        self.checkpointer = Checkpointer(self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return super().build_hooks()


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = config.load(args.config_file)
    cfg.MODEL.LIFT.MASK_FORMAT = "rle"  # ten times as fast, and supported by the evaluator above
    config.apply_overrides(cfg, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
