"""Runs check_rel_pos_attention_triton.py in a process in which Triton interprets, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
CHECKS = Path(__file__).with_name("check_rel_pos_attention_triton.py")
ROOT = Path(__file__).resolve().parents[2]


def run_checks(marker: str, **environment: str) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # One thread: numpy's products in the interpreter are so small that more only get in each other's way.
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marker, str(CHECKS)]
    process = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert process.returncode == 0, process.stdout[-20_000:] + process.stderr[-5_000:]
    assert " passed" in process.stdout


def test_in_the_interpreter() -> None:
    run_checks("not slow", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_in_the_interpreter_at_1024_pixels() -> None:
    run_checks("slow", TRITON_INTERPRET="1")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_the_gpu() -> None:
    run_checks("slow or not slow")


def test_tensors_on_a_cpu_are_refused() -> None:
    """In a fresh process: in this one another test may have imported triton either way."""
    source = """
        import pytest, torch
        from lift_det.layers.rel_pos_attention import triton
        q = torch.zeros(1, 1, 4, 64)
        bias = torch.zeros(1, 1, 4, 2)
        with pytest.raises(RuntimeError, match="CUDA tensors, not on cpu.*TRITON_INTERPRET=1"):
            triton.attention(q, q, q, bias, bias, (2, 2), 1.0)
    """
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", "if True:" + source]
    process = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert process.returncode == 0, process.stderr
