#!/usr/bin/env python
"""Draws a ViT's features as trained LiFTs upsample them, beside bilinear upsampling and the true features.

    python tools/draw_lift.py --config-file configs/LiFT/lift_vits14_cpu.py --lift LiFT=output/lift/lift.safetensors \\
        --output lift.png

The ViT and the images are those of the config of LiFT's training; the images are the first of its test set.
"""

import argparse
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate

from lift_det import BilinearUpsample, FeatureExtractor, load_lift
from lift_det.evaluation import draw_upsampled
from lift_det.modeling import check_lift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a LazyConfig of LiFT's training")
    parser.add_argument("--lift", action="append", default=[], metavar="NAME=FILE", help="any number of times")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--steps", type=int, default=2, help="how often the map is doubled (2)")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2], help="which of the test set, from 0")
    parser.add_argument("opts", nargs="*", help="overrides, key=value")
    args = parser.parse_args()

    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    model = cfg.model
    extractor = FeatureExtractor(instantiate(model.net), layer=model.layer, facet=model.facet, norm=model.get("norm"))
    upsamplers = {"bilinear": BilinearUpsample()}
    for given in args.lift:
        name, _, file = given.partition("=")
        upsamplers[name] = load_lift(file)
        check_lift(upsamplers[name], extractor.settings(), source=file)
    statistics = [
        torch.tensor(list(model[name] or getattr(extractor, name))).view(3, 1, 1)
        for name in ("pixel_mean", "pixel_std")
    ]
    dataset = instantiate(cfg.dataloader.test.dataset)
    images = torch.stack([dataset[i]["image"] for i in args.images]).float()
    draw_upsampled(extractor, upsamplers, images, *statistics, args.steps, args.output)


if __name__ == "__main__":
    main()
