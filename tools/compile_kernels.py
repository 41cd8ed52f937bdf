#!/usr/bin/env python
"""Compiles the Triton kernels of lift_det.layers without a GPU, and prints the resources that they need.

Prints registers per thread, spilled bytes, and shared memory per block for each kernel, configuration, dtype and
architecture, as reported by Triton's ptxas. This takes about 15 minutes on one core, or 3 with a filled Triton cache.

    python tools/compile_kernels.py                                  # all kernels
    python tools/compile_kernels.py --match 'bf16, d 64' --arch 90   # a regular expression
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lift_det.layers.mask_paste import triton as masks
from lift_det.layers.rel_pos_attention import triton as attention

ARCHITECTURES = (80, 90)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Kernel(NamedTuple):
    """A kernel and how to compile it."""

    name: str
    function: Any
    signature: dict[str, str]  # types of the arguments that are not constants; ":16" means divisible by 16
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


def kernels(architecture: int) -> Iterator[Kernel]:
    """Yields all kernels for ``sm_<architecture>``."""
    yield from _attention_kernels(architecture)
    yield from _mask_kernels()


def _attention_kernels(architecture: int) -> Iterator[Kernel]:
    """Yields all configurations and dtypes with head dimensions 64 and 80, for the key grids of ViTDet."""
    functions = {
        "forward": attention._forward_kernel,
        "backward_queries": attention._backward_queries_kernel,
        "backward_keys": attention._backward_keys_kernel,
    }
    key_sides = (14, 32, 64)  # windows, and global attention at 512 and 1024 pixels
    cases = itertools.product(functions.items(), DTYPES.items(), (64, 80), key_sides)
    for (name, function), (type_name, dtype), d, side in cases:
        for config in attention.configurations(name, dtype, architecture):
            constants = attention._constants(d, (side, side), config)
            tile = f"tile {config.block_m}x{config.block_n}"
            label = f"attention {name}, {type_name}, d {d}, keys {side}x{side}, {tile}"
            names = [argument for argument in function.arg_names if argument not in constants]
            signature = {argument: _attention_type(argument, type_name, side % 16 == 0) for argument in names}
            yield Kernel(label, function, signature, constants, config.num_warps, config.num_stages)


def _attention_type(argument: str, type_name: str, even_grid: bool) -> str:
    if argument in ("lse", "delta"):
        return "*fp32:16"
    if argument == "scale":
        return "fp32"
    if argument == "heads":
        return "i32"
    if argument in ("n_q", "k_h", "k_w") or argument.startswith(("rel_h_stride", "rel_w_stride")):
        return "i32:16" if even_grid else "i32"
    return "i32:16" if "_stride_" in argument else f"*{type_name}:16"


def _mask_kernels() -> Iterator[Kernel]:
    tile = {"COLUMNS": masks._COLUMNS, "ROWS": masks._ROWS}
    sizes = {"size": "i32", "height": "i32", "width": "i32", "threshold": "fp32"}
    for type_name in ("fp32", "fp16", "bf16"):
        inputs = {"masks_ptr": f"*{type_name}:16", "boxes_ptr": "*fp32:16", "regions_ptr": "*i32:16"}
        signature = {**inputs, "out_ptr": "*u8:16", **sizes}
        yield Kernel(f"mask paste, {type_name}", masks._paste_kernel, signature, tile, 4, 3)
        signature = {**inputs, "ends_ptr": "*i64:16", "out_ptr": "*i64:16", **sizes}
        for step, write in (("counted", False), ("found", True)):
            name = f"mask changes, {step}, {type_name}"
            yield Kernel(name, masks._changes_kernel, signature, {"WRITE": write, **tile}, 4, 3)


def compile_kernel(kernel: Kernel, architecture: int) -> tuple[int, int, int, int]:
    """Returns registers, bytes of spill stores and of spill loads, and bytes of shared memory."""
    arguments = kernel.function.arg_names
    types = [kernel.signature.get(name, "constexpr") for name in arguments]
    source = ASTSource(
        fn=kernel.function,
        signature={name: kind.split(":")[0] for name, kind in zip(arguments, types, strict=True)},
        constexprs=kernel.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.endswith(":16")},
    )
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return *_ptxas_usage(compiled.asm["ptx"]), compiled.metadata.shared


def _ptxas_usage(ptx: str) -> tuple[int, int, int]:
    """Runs ptxas as Triton does; returns registers, and bytes of spill stores and loads."""
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE).group(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        # the options that Triton 3.8 passes
        command = [triton.knobs.nvidia.ptxas.path, "-v", "-lineinfo", "--regAllocOptLevel=2"]
        command += [f"--gpu-name={architecture}", str(file), "-o", str(Path(folder, "kernel.cubin"))]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    registers = re.search(r"Used (\d+) registers", process.stderr)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", process.stderr)
    return int(registers[1]), int(spills[1]), int(spills[2])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only kernels whose name contains this regular expression")
    parser.add_argument(
        "--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="default: 80 90"
    )
    options = parser.parse_args(arguments)
    print(f"triton {triton.__version__}, {triton.knobs.nvidia.ptxas.version}\n")
    print("| kernel | warps | stages | GPU | registers | spill stores | spill loads | shared memory |")
    print("|---|---|---|---|---|---|---|---|")
    for architecture in options.arch:
        for kernel in kernels(architecture):
            if re.search(options.match, kernel.name):
                usage = compile_kernel(kernel, architecture)
                row = (kernel.name, kernel.num_warps, kernel.num_stages, f"sm_{architecture}", *usage)
                print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
