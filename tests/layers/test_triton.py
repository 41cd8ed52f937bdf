"""The Triton kernels: numerics in Triton's interpreter, and compilation for GPUs that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lift_det.layers import mask_to_rle, paste_masks, rel_pos_attention

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
# shared memory per block in bytes (CUDA C++ Programming Guide, table of compute capabilities)
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


def run_python(*arguments: str, **environment: str) -> str:
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environ |= {"PYTHONPATH": str(ROOT), **environment}
    # numpy's products in the interpreter are too small for threads
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environ, cwd=ROOT)
    assert process.returncode == 0, process.stdout[-20_000:] + process.stderr[-5_000:]
    return process.stdout


CHECKS = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/layers/check_triton.py")


def test_in_the_interpreter() -> None:
    assert " passed" in run_python(*CHECKS, TRITON_INTERPRET="1")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_the_gpu() -> None:
    assert " passed" in run_python(*CHECKS)


def test_compiled_kernels_fit_the_gpu() -> None:
    """The tool's table: no spills with ViT-B's heads of 64 channels, and shared memory also with 80."""
    attention = "(bf16|fp32), d 64, keys 14x14|bf16, d 80, keys 64x64, tile (128x128|64x128)"
    output = run_python("tools/compile_kernels.py", "--match", f"{attention}|mask .*fp32")
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if re.match(r"\| (attention|mask)", line)]
    kernels = {f"attention {name}" for name in ("forward", "backward_queries", "backward_keys")}
    for architecture, shared_memory in SHARED_MEMORY.items():
        compiled = [row for row in rows if row[3] == architecture]
        names = {row[0].partition(",")[0] for row in compiled if "d 80" not in row[0]}
        assert names == {*kernels, "mask paste", "mask changes"}
        for row in compiled:
            assert "d 80" in row[0] or row[5:7] == ["0", "0"], row
            assert row[0].startswith("mask") or 0 < int(row[7]) <= shared_memory, row
    assert any("d 80" in row[0] for row in rows)


def test_arguments_of_one_compile() -> None:
    """Triton makes constants of arguments that are 1: one head, one query, one key."""
    source = """
        import sys
        sys.path.insert(0, "tools")
        from compile_kernels import compile_kernel, kernels
        for name in ("forward", "backward_queries", "backward_keys"):
            kernel = next(k for k in kernels(80) if k.name.startswith(f"attention {name}") and "bf16, d 80" in k.name)
            ones = dict.fromkeys(("heads", "n_q", "k_h", "k_w"), 1)
            signature = {name: kind for name, kind in kernel.signature.items() if name not in ones}
            compile_kernel(kernel._replace(signature=signature, constants=kernel.constants | ones), 80)
    """
    run_python("-c", "if True:" + source)


def test_cpu_tensors_raise() -> None:
    q, table = torch.zeros(1, 1, 4, 64), torch.zeros(3, 64)
    with pytest.raises(RuntimeError, match="cpu"):
        rel_pos_attention(q, q, q, table, table, (2, 2), (2, 2), 1.0, "triton")
    for op in (paste_masks, mask_to_rle):
        with pytest.raises(RuntimeError, match="cpu"):
            op(torch.rand(1, 28, 28), torch.rand(1, 4), (9, 7), implementation="triton")


def test_without_triton() -> None:
    """ "auto" runs, and an explicit request raises."""
    source = """
        import sys
        sys.modules["triton"] = None
        import pytest, torch
        from lift_det.layers import mask_to_rle, paste_masks, rel_pos_attention
        x, table = torch.randn(1, 1, 4, 8), torch.randn(3, 8)
        attention = x, x, x, table, table, (2, 2), (2, 2), 1.0
        masks = torch.rand(3, 28, 28), torch.tensor([[1., 2, 30, 40]] * 3), (50, 60), 0.5
        assert rel_pos_attention(*attention).shape == (1, 1, 4, 8)
        assert paste_masks(*masks).any() and len(mask_to_rle(*masks)) == 3
        for op, arguments in ((rel_pos_attention, attention), (paste_masks, masks), (mask_to_rle, masks)):
            with pytest.raises(RuntimeError, match="triton"):
                op(*arguments, "triton")
    """
    run_python("-c", "if True:" + source)
