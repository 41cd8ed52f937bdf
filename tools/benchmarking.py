"""What benchmark_ops.py and benchmark_model.py share: workers that run in turn, their time and peak memory.

Each thing that is compared lives in a process of its own, so that a peak of memory is its own too, and runs only when
it is asked to: all of them alternate in one run, and a slow minute is slow for all.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

# A repetition is as many calls as take this long: shorter ones would measure clocks and waking threads.
_SECONDS_OF_A_REPETITION = 0.05
# What takes longer is not run a second time to warm up.
_SECONDS_WITHOUT_SECOND_WARM_UP = 1.0

Job = Callable[[], Any]


class WorkerError(RuntimeError):
    """What went wrong in a worker; the last line of its message says it in short."""


class Measured(NamedTuple):
    """Seconds of one call in each repetition, and bytes: the process's peak before the first call, and in the end."""

    seconds: list[float]
    built: int
    peak: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def describe(self, unit: str) -> tuple[str, str]:
        """The median, and the fastest and the slowest repetition, in "s" or "ms"."""
        factor = {"s": 1, "ms": 1e3}[unit]
        middle, low, high = (f"{factor * x:#.4g}" for x in (self.median, min(self.seconds), max(self.seconds)))
        return f"{middle} {unit}", f"{low} – {high}"


class Worker:
    """A process that builds one job, and then runs it when it is asked to.

    ``build`` is called there, without arguments, and gives the job. It has to be found by name, as pickle asks.
    """

    def __init__(self, build: Callable[[], Job], threads: int) -> None:
        # Spawned: a fork would begin with the parent's memory, and CUDA does not survive one.
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(job, *args)``, run there.

        Raises:
            WorkerError: it, or building the job before, failed; or the process ended, as it does without memory.
        """
        try:
            self._pipe.send((function, args))
            answer, error = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise WorkerError(f"the process ended with {self._process.exitcode}, perhaps for want of memory") from None
        if error:
            raise WorkerError(error)
        return answer

    def close(self) -> None:
        self._pipe.close()  # the worker then reads an end of file, and ends
        self._process.join()


@contextlib.contextmanager
def workers(builds: Mapping[str, Callable[[], Job]], threads: int) -> Iterator[dict[str, Worker]]:
    """A worker for each name, all of them alive until the end."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name, build in builds.items():
            running[name] = Worker(build, threads)
            stack.callback(running[name].close)
        yield running


def alternate(running: Mapping[str, Worker], repeats: int, device: str) -> dict[str, Measured | WorkerError]:
    """Warms each worker up, then runs one repetition of each in turn, ``repeats`` times.

    A worker that fails is left out from there on, and gives its error.
    """
    failed: dict[str, WorkerError] = {}
    built, calls, seconds = {}, {}, {name: [] for name in running}
    for round_ in range(-1, repeats):
        for name, worker in running.items():
            if name in failed:
                continue
            try:
                if round_ == -1:
                    built[name] = worker.ask(_peak_memory, device)
                    calls[name] = worker.ask(_warm_up, device)
                else:
                    seconds[name].append(worker.ask(seconds_of_a_call, device, calls[name]))
            except WorkerError as error:
                failed[name] = error
    return {
        name: failed.get(name) or Measured(seconds[name], built[name], worker.ask(_peak_memory, device))
        for name, worker in running.items()
    }


def seconds_of_a_call(job: Job, device: str, calls: int = 1) -> float:
    """The mean over that many calls: CUDA events on a GPU, the clock elsewhere."""
    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            job()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - begin) / calls


def _warm_up(job: Job, device: str) -> int:
    """The number of calls that make a repetition."""
    seconds = seconds_of_a_call(job, device)
    # On a GPU the first call compiles kernels and chooses among them, so its time says nothing.
    if device.startswith("cuda") or seconds < _SECONDS_WITHOUT_SECOND_WARM_UP:
        seconds = seconds_of_a_call(job, device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()  # choosing among kernels takes memory of its own
    return max(1, round(_SECONDS_OF_A_REPETITION / seconds))


def _peak_memory(_job: Job, device: str) -> int:
    """Bytes: the process's peak resident set; on a GPU the peak of what its tensors took there."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux is at least what the parent had in memory when it started this process.
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return int(peaks[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _serve(pipe: Connection, build: Callable[[], Job], threads: int) -> None:
    """A worker's life."""
    torch.set_num_threads(threads)
    job = None
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            job = job or build()
            answer, error = function(job, *args), ""
        except Exception:
            answer, error = None, traceback.format_exc().strip()
        pipe.send((answer, error))


def describe_machine(device: str, threads: int) -> str:
    """The device and the versions, for the head of a table."""
    lines = [f"- CPU: {_cpu_name()}, {platform.machine()}, {threads} threads"]
    if device.startswith("cuda"):
        lines.insert(0, f"- GPU: {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("torchvision", "triton"):
        if importlib.util.find_spec(package):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return "\n".join([*lines, f"- {', '.join(versions)}"])


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def memory_kind(device: str) -> str:
    """What the columns of memory are, for the head of a table."""
    if device.startswith("cuda"):
        return "memory is the peak of what tensors took on the GPU"
    return "memory is the peak resident set of the process, Python and libraries included"


def print_row(*cells: object) -> None:
    """A row of a markdown table, at once: a long run that is broken off leaves what it has measured."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_header(*cells: str) -> None:
    print_row(*cells)
    print(f"|{'---|' * len(cells)}", flush=True)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"
