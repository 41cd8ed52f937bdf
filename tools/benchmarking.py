"""Timing for the benchmarks.

Each side of a comparison has its own process, so that peak memory can be measured separately. The sides alternate, so
that a busy machine slows all of them down.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

# duration of a repetition; shorter ones would be dominated by the clock's resolution
_SECONDS_PER_REPETITION = 0.05
# slower jobs have a single warm-up call
_SECONDS_WITHOUT_SECOND_WARM_UP = 1.0

Job = Callable[[], Any]


class Measured(NamedTuple):
    """Seconds per call of each repetition; peak memory in bytes before the first call (``built``) and at the end."""

    seconds: list[float]
    built: int
    peak: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def describe(self, unit: str) -> tuple[str, str]:
        """Returns the median and the range as texts, in "s" or "ms"."""
        factor = {"s": 1, "ms": 1e3}[unit]
        middle, low, high = (f"{factor * x:#.4g}" for x in (self.median, min(self.seconds), max(self.seconds)))
        return f"{middle} {unit}", f"{low} – {high}"


class Worker:
    """A process that calls ``build`` once and then functions with the job that it returned."""

    def __init__(self, build: Callable[[], Job], threads: int) -> None:
        self._build, self._threads = build, threads
        # not fork, which would start with the parent's memory and cannot use CUDA
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._pool.submit(callable, build)  # starts the process, so that all workers import their modules in parallel

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns ``function(job, *args)``, called in the process; raises its exceptions and those of ``build``."""
        return self._pool.submit(_call, self._build, self._threads, function, args).result()

    def close(self) -> None:
        self._pool.shutdown()


_jobs: list[Job] = []  # in a worker, its job


def _call(build: Callable[[], Job], threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if not _jobs:
        torch.set_num_threads(threads)
        _jobs.append(build())
    return function(_jobs[0], *args)


@contextlib.contextmanager
def workers(builds: Mapping[str, Callable[[], Job]], threads: int) -> Iterator[dict[str, Worker]]:
    """Starts a worker for each name, and ends them all on exit."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(contextlib.closing(Worker(build, threads))) for name, build in builds.items()}


def alternate(running: Mapping[str, Worker], repeats: int, device: str) -> dict[str, Measured | Exception]:
    """Warms up all workers, then runs ``repeats`` repetitions of each, in turns.

    The result of a worker that fails is its exception.
    """
    failed: dict[str, Exception] = {}
    built, calls, seconds = {}, {}, {name: [] for name in running}
    for round_ in range(-1, repeats):
        for name, worker in running.items():
            if name in failed:
                continue
            try:
                if round_ == -1:
                    built[name] = worker.ask(_peak_memory, device)
                    calls[name] = worker.ask(warm_up, device)
                else:
                    seconds[name].append(worker.ask(seconds_per_call, device, calls[name]))
            except Exception as error:
                failed[name] = error
    return {
        name: failed.get(name) or Measured(seconds[name], built[name], worker.ask(_peak_memory, device))
        for name, worker in running.items()
    }


def seconds_per_call(job: Job, device: str, calls: int = 1) -> float:
    """Returns the mean time of several calls."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        job()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def warm_up(job: Job, device: str) -> int:
    """Calls the job once or twice; returns the number of calls for a repetition."""
    on_gpu = device.startswith("cuda")
    seconds = seconds_per_call(job, device)
    if on_gpu or seconds < _SECONDS_WITHOUT_SECOND_WARM_UP:  # on a GPU, the first call compiles and tunes kernels
        seconds = seconds_per_call(job, device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    return max(1, round(_SECONDS_PER_REPETITION / seconds))


def _peak_memory(_job: Job, device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    # On Linux, ru_maxrss includes the parent's memory at the start of this process.
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    if peak:
        return int(peak[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def print_machine(device: str, threads: int, repeats: int, memory: bool = True) -> None:
    """Prints the hardware, the versions and how time and memory are measured."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    print(f"- CPU: {name[1] if name else platform.processor()}, {platform.machine()}, {threads} threads")
    on_gpu = device.startswith("cuda")
    if on_gpu:
        print(f"- GPU: {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    packages = [name for name in ("torch", "torchvision", "triton") if importlib.util.find_spec(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(f"- Python {platform.python_version()}, {', '.join(versions)}")
    print(f"- {repeats} repetitions of each, alternating")
    if memory:
        print(f"- memory: peak of {'the tensors on the GPU' if on_gpu else 'the process, libraries included'}")
    print()


def print_row(*cells: object, header: bool = False) -> None:
    """Prints a row of a Markdown table and flushes it."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if header:
        print(f"|{'---|' * len(cells)}", flush=True)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
