#!/usr/bin/env python
"""Draws a ViT's features as trained LiFTs upsample them, beside bilinear upsampling and the true features.

    python tools/draw_lift.py --config-file configs/LiFT/lift_vits14_cpu.py --lift LiFT=output/lift/lift.safetensors \\
        --output lift.png

The ViT and the images are those of the config of LiFT's training; the images are the first of its test set.
"""

import argparse
from pathlib import Path

from detectron2.config import instantiate

from lift_det import BilinearUpsample, FeatureExtractor, config, load_lift
from lift_det.modeling import upsampled_features
from lift_det.visualization import draw_feature_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="of LiFT's training: a path, or a name in configs/")
    parser.add_argument("--lift", action="append", default=[], metavar="NAME=FILE", help="any number of times")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--steps", type=int, default=2, help="how often the map is doubled (2)")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2], help="which of the test set, from 0")
    parser.add_argument("opts", nargs="*", help="overrides, key=value")
    args = parser.parse_args()

    cfg = config.load(args.config_file, args.opts)
    extractor = FeatureExtractor.of_model(instantiate(cfg.model))
    upsamplers = {"bilinear": BilinearUpsample()}
    for given in args.lift:
        name, _, file = given.partition("=")
        upsamplers[name] = load_lift(file)
        upsamplers[name].trained_on.check(extractor.feature_spec(), source=file)
    dataset = instantiate(cfg.dataloader.test.dataset)
    images, maps = [], []
    for i in args.images:
        image = dataset[i]["image"]  # (3, H, W)
        images.append(image.permute(1, 2, 0).numpy())
        upsampled = upsampled_features(extractor, upsamplers, extractor.normalize(image[None].float()), args.steps)
        maps.append({name: map_[0] for name, map_ in upsampled.items()})
    draw_feature_maps(images, maps, args.output)


if __name__ == "__main__":
    main()
