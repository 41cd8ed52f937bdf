#!/usr/bin/env python
"""Trains or evaluates a LazyConfig.

    python tools/lazyconfig_train_net.py --config-file configs/COCO/mask_rcnn_lift_vitdet_b_100ep.py --num-gpus 8
    python tools/lazyconfig_train_net.py --config-file CONFIG --eval-only train.init_checkpoint=model_final.pth
    python tools/lazyconfig_train_net.py --config-file CONFIG --resume
    torchrun --nproc-per-node 8 tools/lazyconfig_train_net.py --config-file CONFIG

Every config also runs with detectron2's own script of this name. This one adds support for hooks and a trainer in the
config (lift_det.engine.do_train), atomic checkpoints, safetensors and torchrun.
"""

import argparse

from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, default_setup

from lift_det import config
from lift_det.engine import Checkpointer, do_test, do_train, launch, wrap_ddp


def main(args: argparse.Namespace) -> None:
    cfg = config.load(args.config_file, args.opts)
    default_setup(cfg, args)
    if not args.eval_only:
        do_train(args, cfg)
        return
    model = instantiate(cfg.model).to(cfg.train.device)
    model = wrap_ddp(cfg, model)
    Checkpointer(model).load(cfg.train.init_checkpoint)
    do_test(cfg, model)


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
