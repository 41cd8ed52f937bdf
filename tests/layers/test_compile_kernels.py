"""Compiling the Triton kernels for GPUs that are not here: what they take of a GPU, and the tool that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
# What a block may have of a multiprocessor's shared memory (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where Triton compiles, whatever this one does."""
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ | environment, cwd=ROOT)


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    """The cells of the tool's table, for a part of the kernels: the tool starts once, which takes its time."""
    no_spills = "bf16, d 64, keys 14x14|fp16, d 64, keys 64x64|fp32, d 64, keys 14x14"
    largest = "bf16, d 80, keys 64x64, tile (128x128|64x128)"
    process = run("tools/compile_kernels.py", "--match", f"attention.*({no_spills}|{largest})")
    assert process.returncode == 0, process.stderr
    return [line.strip("| ").split(" | ") for line in process.stdout.splitlines() if line.startswith("| attention")]


@pytest.mark.parametrize("case", ["bf16, d 64, keys 14x14", "fp16, d 64, keys 64x64", "fp32, d 64, keys 14x14"])
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_attention_does_not_spill(table: list[list[str]], architecture: str, case: str) -> None:
    """Every configuration, where a tile has several rows of the grid and where it has one."""
    rows = [row for row in table if row[3] == architecture and case in row[0]]
    assert {row[0].split(",")[0].split()[1] for row in rows} == {"forward", "backward_queries", "backward_keys"}
    for row in rows:
        assert row[5:7] == ["0", "0"], f"spills: {row}"


def test_attention_fits_shared_memory(table: list[list[str]]) -> None:
    assert any("d 80" in row[0] for row in table)
    for row in table:
        assert 0 < int(row[7]) <= SHARED_MEMORY[row[3]], row


def test_arguments_that_are_one_compile() -> None:
    """Triton makes constants of them: one head, one query, one key. The interpreter does not, so it cannot tell."""
    source = """
        import sys
        sys.path.insert(0, "tools")
        from compile_kernels import compile_kernel
        from lift_det.layers.rel_pos_attention.triton import compilation_specs
        for kernel in ("forward", "backward_queries", "backward_keys"):
            spec = next(spec for spec in compilation_specs() if spec[0].startswith(f"attention {kernel}, bf16, d 80"))
            name, kernel, signature, constants, *rest = spec
            ones = dict.fromkeys(("heads", "n_q", "k_h", "k_w"), 1)
            signature = {name: kind for name, kind in signature.items() if name not in ones}
            compile_kernel((name, kernel, signature, constants | ones, *rest), 80)
    """
    process = run("-c", "if True:" + source)
    assert process.returncode == 0, process.stderr


def test_tool_refuses_the_interpreter() -> None:
    process = run("tools/compile_kernels.py", "--match", "forward, bf16, d 64, keys 64x64", TRITON_INTERPRET="1")
    assert process.returncode == 1
    assert "unset it" in process.stderr
