"""Stands before the programs of the documentation's commands, on their PATH: ``shims.py PROGRAM ARGUMENT…``.

The shell runs a command as it is printed and expands what it has to; this writes down what would have been run, and,
as $DOCS_MODE says, runs it made shorter ("run"), or leaves it at that ("record").
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("python", "lift-det", "make", "pip", "git", "torchrun", "srun", "sbatch", "scontrol", "tensorboard")
PROGRAMS += ("pre-commit",)

# srun's options whose value is the next argument
_SRUN_WITH_VALUE = ("-N", "-n", "-c", "-G", "-p", "-t", "-w", "-J", "-A")


def main(program: str, arguments: Sequence[str]) -> None:
    """Run or record one program."""
    if program == "scontrol":  # of `scontrol show hostnames`
        print("localhost")
        return
    if program == "srun":
        os.execvp(_after_srun(arguments)[0], _after_srun(arguments))
    # what $(…) needs is run in either case
    if os.environ["DOCS_MODE"] == "record" and not (program == "python" and arguments[0] == "-c"):
        with open(os.environ["DOCS_LOG"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"argv": [program, *arguments], "env": dict(os.environ)}) + "\n")
        return
    sys.path.insert(0, str(ROOT))
    from tests.docs.rules import shorten

    started = {"python": [], "lift-det": [str(ROOT / "lift_det_cli.py")]}
    if program not in started:
        sys.exit(f"{program} is not for running here: name the command in rules.PARSED.")
    python = os.environ["DOCS_PYTHON"]
    os.execv(python, [python, *started[program], *shorten(program, arguments)])


def _after_srun(arguments: Sequence[str]) -> list[str]:
    """What srun would start, without srun's own options."""
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        del rest[: 2 if rest[0] in _SRUN_WITH_VALUE else 1]
    return rest


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
