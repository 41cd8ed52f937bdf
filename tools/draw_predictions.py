#!/usr/bin/env python
"""Draws the predictions of a trained detector for images of its test set, beside the ground truth.

python tools/draw_predictions.py --config-file CONFIG --output predictions.png train.init_checkpoint=model_final.pth
"""

import argparse
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from lift_det import config
from lift_det.engine import Checkpointer
from lift_det.visualization import draw_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a LazyConfig: a path, or a name in configs/")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--num-images", type=int, default=8, help="draw the first images of the test set (default: 8)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="lowest score to draw (default: 0.5)")
    parser.add_argument("opts", nargs="*", help="overrides, key=value")
    args = parser.parse_args()

    cfg = config.load(args.config_file, args.opts)
    model = instantiate(cfg.model).to(cfg.train.device)
    Checkpointer(model).load(cfg.train.init_checkpoint)
    test = cfg.dataloader.test
    dicts = instantiate(test.dataset)[: args.num_images]
    metadata = MetadataCatalog.get(test.dataset.names)
    draw_predictions(model, dicts, metadata, instantiate(test.mapper), args.output, args.score_threshold)


if __name__ == "__main__":
    main()
