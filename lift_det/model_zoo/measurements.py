"""What the shipped configs are and cost, as `lift-det configs` shows it: measured once, and kept beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

#: written by tools/measure_configs.py
MEASUREMENTS_FILE = Path(__file__).with_name("measurements.json")

_HEADERS = (
    *("config", "params (M)", "trained (M)", "GFLOPs", "image", "ViT sees", "strides", "pretrained"),
    *("s", "GB", "on"),
)
_NOTES = """\
Parameters are the whole model's. GFLOPs, seconds and memory are those of the backbone, one image and fp32,
with random weights: ViT, LiFT and pyramid, or ViT and LiFT where the config trains LiFT. The heads behind it depend on
what is found. GFLOPs are 10⁹ multiply-adds as fvcore counts them, with attention; seconds are the median of several
passes (*: one) after one to warm up; memory is the peak of the process, Python and libraries included, or of the GPU.
Image, what the ViT sees of it and strides are in pixels."""


def read_measurements() -> dict[str, dict[str, Any]]:
    """What was measured of each shipped config.

    Returns:
        Names of configs to the fields of :class:`lift_det.engine.Measurement`.
    """
    return json.loads(MEASUREMENTS_FILE.read_text(encoding="utf-8"))


def measurement_table(measurements: Mapping[str, Mapping[str, Any] | None], tablefmt: str = "simple") -> str:
    """A table of measurements, and below it what the figures are and where they were taken.

    Args:
        measurements: names to the fields of a measurement; None is a config that was not measured.
        tablefmt: of :func:`tabulate.tabulate`, such as ``"simple"`` or ``"github"``.
    """
    places = list(dict.fromkeys(measured["hardware"] for measured in measurements.values() if measured))
    rows = [[name, *(_cells(measured, places) if measured else ())] for name, measured in measurements.items()]
    right = ("right",)
    alignment = ("left", *5 * right, "left", "left", *2 * right, "left")
    table = tabulate(rows, _HEADERS, tablefmt, disable_numparse=True, colalign=alignment)
    where = "\n".join(f"[{number}] {place}" for number, place in enumerate(places, start=1))
    return f"{table}\n\n{_NOTES}\n{where}"


def _cells(measured: Mapping[str, Any], places: Sequence[str]) -> list[str]:
    """In the order of the headers, without the name."""
    return [
        f"{measured['parameters'] / 1e6:.1f}",
        f"{measured['trained'] / 1e6:.1f}",
        f"{measured['gflops']:#.4g}".rstrip("."),
        str(measured["image_size"]),
        str(measured["seen_size"]),
        " ".join(f"{stride:g}" for stride in measured["strides"]),
        measured["pretrained"] or "-",
        f"{measured['seconds']:.3g}{'*' if measured['runs'] == 1 else ''}",
        f"{measured['peak_memory'] / 1e9:.2f}",
        f"[{places.index(measured['hardware']) + 1}]",
    ]
