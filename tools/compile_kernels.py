"""Compile the Triton kernels of lift_det/layers for GPUs that are not here, and print what they take of them.

For every kernel, configuration, type and architecture one row of a markdown table: registers of a thread, bytes that it
spills, and shared memory of a block, as ptxas (the one that triton ships) reports them. Needs no GPU. All of it
takes about 15 minutes on one core the first time, and a fifth of that from Triton's cache.

    python tools/compile_kernels.py                                  # everything
    python tools/compile_kernels.py --match 'bf16, d 64' --arch 90   # a regular expression

The kernels come from the modules in KERNEL_MODULES. Each has a function ``compilation_specs()`` that yields tuples
``(name, kernel, signature, constants, num_warps, num_stages)``, or the same with ``architectures`` at the end:

- name: str, for the table and for --match;
- kernel: what ``@triton.jit`` returned;
- signature: dict, every argument that is not constant → its type as ``triton/tools/compile.py`` writes it:
  ``"*bf16"``, ``"i32"``, ``"fp32"``; ``"*bf16:16"`` or ``"i32:16"`` if it is divisible by 16, as pointers to tensors
  are and as Triton finds out at run time (loads are wide only then);
- constants: dict, every ``tl.constexpr`` argument → its value;
- num_warps and num_stages: int;
- architectures: tuple of int, 80 for sm_80, if a kernel is not for all of ARCHITECTURES.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Without this a script finds only what is beside it in tools/.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

KERNEL_MODULES = (
    "lift_det.layers.rel_pos_attention.triton",
    "lift_det.layers.mask_paste.triton",
)
ARCHITECTURES = (80, 90)

Spec = tuple[Any, ...]


class Usage(NamedTuple):
    """Registers of a thread, bytes that it stores in and loads from memory for want of more, bytes of shared memory."""

    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


def specs(module_name: str) -> Iterator[Spec]:
    """What one module wants compiled; nothing if there is no such module."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        return
    yield from module.compilation_specs()


def architectures_of(spec: Spec) -> tuple[int, ...]:
    """The architectures that a kernel is for."""
    return spec[6] if len(spec) > 6 else ARCHITECTURES


def compile_kernel(spec: Spec, architecture: int) -> Usage:
    """Compile one kernel for sm_<architecture>.

    Raises:
        RuntimeError: Triton's interpreter is on, which leaves nothing to compile.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels cannot be compiled where TRITON_INTERPRET is set: unset it")
    _, kernel, signature, constants, num_warps, num_stages, *_ = spec
    types = [signature.get(name, "constexpr") for name in kernel.arg_names]
    source = ASTSource(
        fn=kernel,
        # In the order of the arguments, which is that of the compiled kernel's parameters.
        signature={name: kind.split(":")[0] for name, kind in zip(kernel.arg_names, types, strict=True)},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.endswith(":16")},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": num_warps, "num_stages": num_stages})
    return Usage(*_ptxas_usage(compiled.asm["ptx"]), compiled.metadata.shared)


def _ptxas_usage(ptx: str) -> tuple[int, int, int]:
    """Registers, spill stores and spill loads, from an assembly like the one that Triton has done.

    Triton keeps ptxas's report only if asked before, and not for what it finds in its cache.
    """
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE).group(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        # The options of Triton 3.8.
        command = [triton.knobs.nvidia.ptxas.path, "-v", "-lineinfo", "--regAllocOptLevel=2"]
        command += [f"--gpu-name={architecture}", str(file), "-o", str(Path(folder, "kernel.cubin"))]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    registers = re.search(r"Used (\d+) registers", process.stderr)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", process.stderr)
    return int(registers.group(1)), int(spills.group(1)), int(spills.group(2))


def _work(job: tuple[str, int, int]) -> Usage:
    """One row of the table, perhaps in another process: a kernel cannot be sent there, its number can."""
    module_name, index, architecture = job
    return compile_kernel(next(itertools.islice(specs(module_name), index, None)), architecture)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU and print what they take.")
    parser.add_argument("--match", default="", help="only kernels whose name this regular expression is found in")
    parser.add_argument(
        "--arch", type=int, action="append", choices=ARCHITECTURES, help="only sm_ARCH; may be repeated (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    options = parser.parse_args(arguments)

    jobs, rows = [], []
    for module_name in KERNEL_MODULES:
        for index, spec in enumerate(specs(module_name)):
            name, _, _, _, num_warps, num_stages, *_ = spec
            if not re.search(options.match, name):
                continue
            for architecture in architectures_of(spec):
                if architecture in (options.arch or ARCHITECTURES):
                    jobs.append((module_name, index, architecture))
                    rows.append((name, num_warps, num_stages, f"sm_{architecture}"))
    print(f"triton {triton.__version__}, {triton.knobs.nvidia.ptxas.version}\n")
    print("| kernel | warps | stages | GPU | registers | spill stores | spill loads | shared memory |")
    print("|---|---|---|---|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        apply = map
        if options.jobs > 1:
            # Spawned, because Triton's compiler has threads, which a fork does not survive.
            pool = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"))
            apply = stack.enter_context(pool).map
        for row, usage in zip(rows, apply(_work, jobs), strict=True):
            print(f"| {' | '.join(map(str, (*row, *usage)))} |", flush=True)


if __name__ == "__main__":
    main()
