#!/usr/bin/env python
"""What LiFT costs: parameters, multiplications and time of each kind, as shares of the ViT's at the same image.

    python tools/benchmark_lift.py --backbone vit_small_patch14_dinov2.lvd142m --image-size 224 --batch-size 4

Times are medians; ViT and LiFTs alternate in each round, so that a slow minute is slow for all. Weights are random.
"""

import argparse
import platform
import statistics
import time

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from lift_det import LiFT, LiFTPlus, TimmViT

_BARE = dict(pool=0, normalize=False, keep_length=False)
KINDS = {
    "the paper's": (LiFT, dict(residual=False)),
    "residual": (LiFT, {}),
    "residual, pool 3": (LiFTPlus, {**_BARE, "network": "paper", "pool": 3}),
    "trunk": (LiFTPlus, _BARE),
    "trunk, pool 3": (LiFTPlus, {**_BARE, "pool": 3}),
    "trunk, pool 5": (LiFTPlus, {**_BARE, "pool": 5}),
    "trunk, pool 3, normalize": (LiFTPlus, {**_BARE, "pool": 3, "normalize": True}),
    "LiFTPlus (lengths kept, too)": (LiFTPlus, {}),
}


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
    with torch.no_grad():
        features = vit(images)["last_feat"]
        lifts = {
            name: kind(vit.embed_dim, vit.patch_size, **options).eval().to(args.device)
            for name, (kind, options) in KINDS.items()
        }
        runs = {"ViT": lambda: vit(images)}
        runs |= {name: lambda lift=lift: lift(images, features) for name, lift in lifts.items()}
        flops = {name: _flops(run) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(args.rounds + 1):
            for name, run in runs.items():
                seconds = _seconds(run, args.device)
                if round_:  # the first warms up
                    times[name].append(seconds)
    modules = {"ViT": vit, **lifts}
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        (
            name,
            f"{sum(p.numel() for p in modules[name].parameters()) / 1e6:.2f}M",
            f"{flops[name] / 2e9 / args.batch_size:.2f} G",
            f"{100 * flops[name] / flops['ViT']:.1f} %",
            f"{1e3 * medians[name]:.1f} ms",
            f"{100 * medians[name] / medians['ViT']:.1f} %",
        )
        for name in runs
    ]
    device = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{device} ({platform.machine()}), torch {torch.__version__}, {args.backbone},")
    print(f"{args.batch_size} images of {args.image_size} pixels, median of {args.rounds} rounds\n")
    header = ("", "parameters", "multiplications an image", "of the ViT's", "time", "of the ViT's")
    print(tabulate(rows, headers=header, tablefmt="github", disable_numparse=True))


def _flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _seconds(run, device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
