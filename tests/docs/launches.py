"""Checks of the commands that are not run: each is followed up to what would start processes, install or fetch."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import detectron2.engine
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

import lift_det.cli
import lift_det.engine
from lift_det import config
from tests.docs.commands import ROOT
from tests.docs.sandbox import Sandbox


class Launched(BaseException):
    """Raised in place of starting processes; no BaseException is taken for an error of the command's."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__("launched")
        self.arguments = arguments


def check(sandbox: Sandbox, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Follows one program's start, as :meth:`Sandbox.record` gives it, as far as it can be.

    Raises:
        AssertionError: it would not have done what the documentation says.
    """
    name, *rest = argv
    if name == "python" and rest[0] == "-m" and rest[1] in _CHECKS:
        name, rest = rest[1], rest[2:]
    if name == "lift-det" and len(rest) == 1:
        rest = [*rest, "--help"]
    with mock.patch.dict(os.environ, env, clear=True), _inside(sandbox.folder):
        _CHECKS[name](rest)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _make(arguments: Sequence[str]) -> None:
    # not the one of the sandbox
    make = shutil.which("make", path=os.environ["PATH"].split(os.pathsep, 1)[1])
    assert make, "no make here"
    done = subprocess.run([make, "-n", "-B", *arguments], capture_output=True, text=True)
    # that is what it says of a folder of the target's name
    assert done.returncode == 0 and "Nothing to be done" not in done.stdout, done.stdout + done.stderr


def _git(arguments: Sequence[str]) -> None:
    assert arguments[0] == "clone" and re.fullmatch(r"(https://|git@)\S+", arguments[1]), arguments


def _venv(arguments: Sequence[str]) -> None:
    assert len(arguments) == 1, arguments


def _pip(arguments: Sequence[str]) -> None:
    command, *rest = arguments
    assert command == "install", arguments
    while rest:
        word = rest.pop(0)
        if word in ("-c", "-r"):
            assert Path(rest.pop(0)).is_file()
        elif word in ("--index-url", "--extra-index-url"):
            assert rest.pop(0).startswith("https://")
        elif match := re.fullmatch(r"\.(?:\[([\w,]+)\])?", word):
            extras = re.search(r"extras_require=\{(.*?)\}", Path("setup.py").read_text(), re.DOTALL)
            assert extras and all(f'"{extra}":' in extras[1] for extra in (match[1] or "").split(",") if extra), word
        elif not word.startswith("-"):
            Requirement(word)


def _pytest(arguments: Sequence[str]) -> None:
    # of the names of files and folders among the arguments; `-n 2` has a value
    names = [word for word in arguments if "/" in word or word == "tests"]
    assert all(Path(name.split("::")[0]).exists() for name in names), names


def _pre_commit(arguments: Sequence[str]) -> None:
    assert arguments[0] in ("install", "run") and (ROOT / ".pre-commit-config.yaml").is_file(), arguments


def _tensorboard(arguments: Sequence[str]) -> None:
    assert re.fullmatch(r"--logdir[ =]\S+", " ".join(arguments)), arguments


def _sbatch(arguments: Sequence[str]) -> None:
    done = subprocess.run(["bash", "-n", arguments[-1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _torchrun(arguments: Sequence[str]) -> None:
    """torchrun's own arguments by its own parser, then the script as each of its processes has it."""
    options = get_args_parser().parse_args(arguments)
    nodes, processes = int(options.nnodes.split(":")[-1]), int(options.nproc_per_node)
    assert nodes * processes > 1, "torchrun for a single process"
    if nodes > 1:
        assert options.rdzv_endpoint or options.master_addr != "127.0.0.1", "several machines, and no place to meet"
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(nodes * processes), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ.update(ranks, MASTER_ADDR="localhost", MASTER_PORT="29500", TORCHELASTIC_RUN_ID="docs")
    words = ["-m", options.training_script] if options.module else [options.training_script]
    launched = _launch_of(lambda: _run_python([*words, *options.training_script_args]))
    # the processes are torchrun's
    assert launched.get("num_gpus", 1) == launched.get("num_machines", 1) == 1, launched


def _python(arguments: Sequence[str]) -> None:
    _check_processes(_launch_of(lambda: _run_python(arguments)))


def _lift_det(arguments: Sequence[str]) -> None:
    if "--help" in arguments:
        assert lift_det.cli.main(arguments) == 0
    else:
        _check_processes(_launch_of(lambda: lift_det.cli.main(arguments)))


def _check_processes(launched: Mapping[str, Any]) -> None:
    gpus = launched.get("num_gpus", launched.get("num_gpus_per_machine", 1))
    machines, rank = launched.get("num_machines", 1), launched.get("machine_rank", 0)
    assert gpus * machines > 1, "a single process: this command can be run"
    assert 0 <= rank < machines
    if machines > 1:
        assert re.fullmatch(r"tcp://[\w.-]+:\d+", launched["dist_url"]), launched["dist_url"]


def _launch_of(command: Callable[[], Any]) -> Mapping[str, Any]:
    """The arguments with which a command calls `launch`, whose config has been read with its overrides."""
    modules = (detectron2.engine, lift_det.engine)
    with mock.patch.multiple(modules[0], launch=_recorder(modules[0].launch)):
        with mock.patch.multiple(modules[1], launch=_recorder(modules[1].launch)):
            try:
                code = command()
            except Launched as launched:
                _read_config(launched.arguments)
                return launched.arguments
            except SystemExit as end:
                code = end.code
    raise AssertionError(f"it ended with {code!r} before it started any process")


def _recorder(launch: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(launch)

    def record(*args: Any, **kwargs: Any) -> None:
        raise Launched(signature.bind(*args, **kwargs).arguments)

    return record


def _read_config(arguments: Mapping[str, Any]) -> None:
    for options in arguments.get("args", ()):
        path = getattr(options, "config_file", "")
        if path:
            config.load(path, options.opts)


def _run_python(arguments: Sequence[str]) -> None:
    """``python ARGUMENTS`` in this process, with its module search path and ``sys.argv``."""
    with mock.patch.object(sys, "argv", list(arguments)), mock.patch.object(sys, "path", list(sys.path)):
        if arguments[0] == "-m":
            sys.argv = list(arguments[1:])
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")


_CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": _make,
    "git": _git,
    "venv": _venv,
    "pip": _pip,
    "pytest": _pytest,
    "pre-commit": _pre_commit,
    "tensorboard": _tensorboard,
    "sbatch": _sbatch,
    "torchrun": _torchrun,
    "torch.distributed.run": _torchrun,
    "python": _python,
    "lift-det": _lift_det,
}
