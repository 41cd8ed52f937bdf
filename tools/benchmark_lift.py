#!/usr/bin/env python
"""Compares parameters, multiplications and time of LiFT's variants with those of the ViT for the same image.

    python tools/benchmark_lift.py --backbone vit_small_patch14_dinov2.lvd142m --image-size 224 --batch-size 4

Times are medians; the ViT and the LiFTs alternate after a warm-up. Weights are random.
"""

import argparse
import statistics

import torch
from benchmarking import print_machine, seconds_per_call
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from lift_det import LiFT, LiFTPlus, TimmViT

_BARE = dict(attention_kernel=0, standardize=False, preserve_norm=False)
VARIANTS = {
    "the paper's": (LiFT, dict(residual=False)),
    "residual": (LiFT, {}),
    "residual, 3×3 attention": (LiFTPlus, {**_BARE, "network": "paper", "attention_kernel": 3}),
    "trunk": (LiFTPlus, _BARE),
    "trunk, 3×3 attention": (LiFTPlus, {**_BARE, "attention_kernel": 3}),
    "trunk, 5×5 attention": (LiFTPlus, {**_BARE, "attention_kernel": 5}),
    "trunk, 3×3, standardized": (LiFTPlus, {**_BARE, "attention_kernel": 3, "standardize": True}),
    "LiFTPlus": (LiFTPlus, {}),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2.lvd142m", help="timm's name")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    vit = TimmViT(args.backbone).eval().to(args.device)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    features = vit(images)["last_feat"]
    modules, runs = {"ViT": vit}, {"ViT": lambda: vit(images)}
    for name, (variant, options) in VARIANTS.items():
        modules[name] = variant(vit.embed_dim, vit.patch_size, **options).eval().to(args.device)
        runs[name] = lambda lift=modules[name]: lift(images, features)
    multiplications = {}
    for name, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        multiplications[name] = counter.get_total_flops() / 2
    rounds = [{name: seconds_per_call(run, args.device) for name, run in runs.items()} for _ in range(args.rounds)]
    seconds = {name: statistics.median(times[name] for times in rounds) for name in runs}
    rows = [
        (
            name,
            f"{sum(p.numel() for p in modules[name].parameters()) / 1e6:.2f}M",
            f"{multiplications[name] / 1e9 / args.batch_size:.2f} G",
            f"{100 * multiplications[name] / multiplications['ViT']:.1f} %",
            f"{1e3 * seconds[name]:.1f} ms",
            f"{100 * seconds[name] / seconds['ViT']:.1f} %",
        )
        for name in runs
    ]
    print(f"{args.backbone}, {args.batch_size} images of {args.image_size} pixels\n")
    print_machine(args.device, torch.get_num_threads(), args.rounds, memory=False)
    header = ("", "parameters", "multiplications per image", "relative to the ViT", "time", "relative to the ViT")
    print(tabulate(rows, headers=header, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
