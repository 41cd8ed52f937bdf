#!/usr/bin/env python
"""Trains LiFT and a detector on synthetic data, on a CPU in minutes: `make quickstart`.

Draws the synthetic COCO dataset, trains LiFT on the features of a small ViT, trains a small Mask R-CNN with that LiFT,
and evaluates it on held-out images, with the same tools as for COCO. The results are written to output/quickstart.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIFT_CONFIG = "quick_schedules/lift_synthetic_cpu.py"
DETECTOR_CONFIG = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "quickstart", help="folder for the results")
    parser.add_argument("--num-train", type=int, default=1000, help="synthetic training images")
    parser.add_argument("--num-val", type=int, default=200, help="held-out synthetic images")
    parser.add_argument("opts", nargs="*", help="overrides of the detector's config, key=value")
    args = parser.parse_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # detectron2 reads this when it is imported
    os.environ["DETECTRON2_DATASETS"] = str(output / "datasets")

    start = time.monotonic()
    print("1/4  drawing the synthetic dataset", flush=True)
    from lift_det.data import write_synthetic_coco

    write_synthetic_coco(output / "datasets", num_train=args.num_train, num_val=args.num_val)
    drawn = time.monotonic()

    print("2/4  training LiFT on the features of a small ViT with random weights", flush=True)
    lift_folder = output / "lift"
    _train(LIFT_CONFIG, lift_folder, [])
    lifted = time.monotonic()

    print("3/4  training Mask R-CNN with this LiFT and a ViT from scratch", flush=True)
    detector_folder = output / "detector"
    _train(DETECTOR_CONFIG, detector_folder, [f"train.init_checkpoint={lift_folder / 'model_final.pth'}", *args.opts])
    shutil.copyfile(detector_folder / "metrics.json", output / "metrics.json")
    trained = time.monotonic()

    print("4/4  drawing feature maps and predictions", flush=True)
    parameters = _draw(output, detector_folder / "model_final.pth", args.opts)
    seconds = [drawn - start, lifted - drawn, trained - lifted, time.monotonic() - trained]
    print(_closing_table(args, _last(lift_folder), _last(detector_folder), seconds, parameters))
    print(f"Pictures: {output / 'predictions.png'} and {output / 'features.png'}. All metrics: {output}/metrics.json.")


def _train(config: str, folder: Path, options: list[str]) -> None:
    """Runs lazyconfig_train_net.py; writes its log to a file and prints its progress."""
    shutil.rmtree(folder, ignore_errors=True)  # the trainer would append to metrics.json
    folder.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "tools" / "lazyconfig_train_net.py"), "--config-file"]
    command += [str(ROOT / "configs" / config), f"train.output_dir={folder}", *options]
    log = folder / "terminal.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        shown = -1
        while process.poll() is None:
            time.sleep(1)
            last = _last(folder)
            if last.get("iteration", -1) > shown:
                shown = last["iteration"]
                left = f"{last['eta_seconds'] / 60:.1f} min left" if last.get("eta_seconds") else ""
                print(f"     iteration {shown + 1:5d}   loss {last['total_loss']:.3f}   {left}", flush=True)
    if process.returncode:
        tail = "".join(log.read_text().splitlines(keepends=True)[-25:])
        sys.exit(f"{tail}\nTraining failed with exit code {process.returncode}; the log is {log}.")


def _last(folder: Path) -> dict:
    """Returns the latest value of each entry of metrics.json."""
    path = folder / "metrics.json"
    merged: dict = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            merged.update(json.loads(line))
        except json.JSONDecodeError:  # a line that is being written
            break
    return merged


def _draw(output: Path, checkpoint: Path, opts: list[str]) -> int:
    import torch
    from detectron2.config import instantiate
    from detectron2.data import MetadataCatalog

    from lift_det import BilinearUpsample, config
    from lift_det.engine import Checkpointer
    from lift_det.visualization import draw_feature_maps, draw_predictions

    cfg = config.load(DETECTOR_CONFIG, opts)
    model = instantiate(cfg.model)
    Checkpointer(model).load(str(checkpoint))
    model.eval()
    dicts, mapper = instantiate(cfg.dataloader.test.dataset), instantiate(cfg.dataloader.test.mapper)
    metadata = MetadataCatalog.get(cfg.dataloader.test.dataset.names)
    draw_predictions(model, dicts[:8], metadata, mapper, output / "predictions.png", score_threshold=0.4)

    images = torch.stack([mapper(d)["image"] for d in dicts[:4]])  # (N, 3, H, W) uint8
    backbone = model.backbone
    with torch.no_grad():
        bottom_up, lifted = backbone.forward_features((images - model.pixel_mean) / model.pixel_std)
    features = bottom_up[backbone.in_feature]
    bilinear = BilinearUpsample().upsample(images, features, backbone.steps)
    maps = [{"vit": features[i], "bilinear": bilinear[i], "lift": lifted[i]} for i in range(len(images))]
    draw_feature_maps(list(images.permute(0, 2, 3, 1).numpy()), maps, output / "features.png")
    return sum(p.numel() for p in model.parameters())


def _closing_table(args: argparse.Namespace, lift: dict, detector: dict, seconds: list[float], parameters: int) -> str:
    rows = [
        ("cosine to the true features, LiFT", f"{lift['cosine_2x/lift']:.4f}"),
        ("cosine to the true features, bilinear", f"{lift['cosine_2x/bilinear']:.4f}"),
        ("box AP / AP50", f"{detector['bbox/AP']:.1f} / {detector['bbox/AP50']:.1f}"),
        ("mask AP / AP50", f"{detector['segm/AP']:.1f} / {detector['segm/AP50']:.1f}"),
        ("seconds: data, LiFT, detector, pictures", ", ".join(f"{s:.0f}" for s in seconds)),
        ("total", f"{sum(seconds) / 60:.1f} min on {os.cpu_count()} CPU cores"),
    ]
    table = "\n".join(f"  {name:<42}{value}" for name, value in rows)
    return (
        f"\n{table}\n"
        f"  A {parameters / 1e6:.1f}M-parameter detector, {detector['iteration']} iterations from scratch,\n"
        f"  on {args.num_train} synthetic images of 128 pixels, evaluated on {args.num_val} others. Its ViT has\n"
        "  convolutional residual blocks, and had random weights when LiFT was trained on its features.\n"
        "  This shows that everything works together; it says nothing about COCO.\n"
    )


if __name__ == "__main__":
    main()
