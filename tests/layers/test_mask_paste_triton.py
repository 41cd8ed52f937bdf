"""The Triton kernels, in Triton's interpreter and compiled for GPUs that are not here; on a GPU: test_mask_paste.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lift_det.layers import mask_to_rle, paste_masks
from tests.layers.mask_cases import Case, random_cases, rounding_decides, smooth_masks

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environ |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    process = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environ, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return process


def cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for case in random_cases(300, seed=3):
        height, width = case.image_shape
        if not rounding_decides(case) and height * width < 8_000:  # the interpreter takes its time
            found.append(case._replace(masks=case.masks[:2], boxes=case.boxes[:2]))
    # to the image's edges, where a run goes on in the next column; one column; one row; half precision
    boxes = torch.tensor([[0.0, 0, 45, 40], [-9, 10, 30, 50], [20, -20, 50, 31], [44, 30, 45, 40], [0, 0, 45, 1]])
    masks = smooth_masks(5, 28, 30, generator)
    masks[0] = 1
    found.append(Case(masks, boxes, (40, 45), 0.5))
    found.append(Case(masks, boxes, (40, 45), 0.3))
    found.append(Case(masks[:3].half(), boxes[:3], (40, 45), 0.5))
    return found


def test_interpreted_kernels_agree(tmp_path: Path) -> None:
    given = cases()
    assert len(given) >= 8
    torch.save([tuple(case) for case in given], tmp_path / "cases.pt")
    run("tests/layers/interpret_mask_paste.py", str(tmp_path / "cases.pt"), str(tmp_path / "results.pt"))
    changes = 0
    for case, (pasted, rles) in zip(given, torch.load(tmp_path / "results.pt"), strict=True):
        # the kernels have coordinates in float32 whatever the masks are
        full = case._replace(masks=case.masks.float())
        assert torch.equal(pasted, paste_masks(*full))
        assert rles == mask_to_rle(*full)
        changes += sum(len(rle["counts"]) for rle in rles)
    assert changes > 1000


def test_compiled_kernels_do_not_spill() -> None:
    table = run("tools/compile_kernels.py", "--match", "^mask").stdout
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| mask")]
    assert {row[0].split(",")[0] for row in rows} == {"mask paste", "mask changes"}
    assert {row[3] for row in rows} == {"sm_80", "sm_90"}
    assert all(row[5:7] == ["0", "0"] for row in rows), table


def test_triton_says_what_it_needs() -> None:
    with pytest.raises(RuntimeError, match="needs tensors on a CUDA device; these are on cpu"):
        paste_masks(torch.rand(1, 28, 28), torch.rand(1, 4), (9, 7), implementation="triton")
