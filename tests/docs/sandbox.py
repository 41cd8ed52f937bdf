"""The folder in which the documentation's commands run: to the eye a checkout, with data and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.docs import given, rules, shims
from tests.docs.commands import ROOT, Snippet, snippets

# not of a checkout that was just cloned
_LEFT_OUT = {"output", "datasets", "weights", "build", "dist", "cache"}


class Sandbox:
    """A folder with links to the checkout's files, and the programs of rules.PROGRAMS on its PATH.

    Attributes:
        folder: the working directory of all commands.
        env: their environment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for path in ROOT.iterdir():
            if not path.name.startswith(".") and path.name not in _LEFT_OUT:
                (folder / path.name).symlink_to(path)
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name in shims.PROGRAMS:
            (programs / name).write_text(f'#!/bin/sh\nexec "$DOCS_PYTHON" -S "{shims.__file__}" {name} "$@"\n')
            (programs / name).chmod(0o755)
        (programs / "activate").touch()
        given.write_data(folder)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DETECTRON2", "LIFT_DET"))},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DOCS_PYTHON": sys.executable,
            "DOCS_LOG": str(folder / "commands.log"),
            "CUDA_VISIBLE_DEVICES": "",  # the same on every machine
            # what a job script reads
            **{"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "localhost", "SLURM_PROCID": "0"},
            # nothing is fetched: what is not given is an error at once
            **{"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache/huggingface")},
            **{"FVCORE_CACHE": str(folder / "cache/fvcore"), "TORCH_HOME": str(folder / "cache/torch")},
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        }

    def script(self, snippet: Snippet) -> str:
        """What a shell is given: what stands above it in its document for all that follow, and the command."""
        above = [other.text for other in snippets(snippet.document) if other.line < snippet.line and _is_state(other)]
        return rules.fill_in(snippet.document, "\n".join(["set -e", *above, snippet.text, ""]))

    def record(self, snippet: Snippet) -> list[dict[str, Any]]:
        """The programs that a command would start, each with its ``argv`` and ``env``."""
        log = Path(self.env["DOCS_LOG"])
        log.unlink(missing_ok=True)
        done = self._bash(snippet, {"DOCS_MODE": "record"})
        assert done.returncode == 0, done.stdout
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def run(self, snippet: Snippet, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs a command or example, made shorter; its terminal is ``.stdout``."""
        if snippet.language == "python":
            return self._run_example(snippet, timeout)
        for started in self.record(snippet):
            program, *arguments = started["argv"]
            given.write_weights(self.folder, [program, *rules.shorten(program, arguments)])
        return self._bash(snippet, {"DOCS_MODE": "run"}, timeout)

    def _run_example(self, snippet: Snippet, timeout: float) -> subprocess.CompletedProcess[str]:
        given.write_hub_of_example(self.folder, snippet.text)
        before = "".join(lines for sign, lines in rules.BEFORE_EXAMPLE.items() if sign in snippet.text)
        first = snippet.text.split("\n", 1)[0].removeprefix("# ")
        path = self.folder / (first if first.endswith(".py") and " " not in first else "example.py")
        path.write_text(before + snippet.text + "\n", encoding="utf-8")
        return self._process([sys.executable, path.name], {}, timeout)

    def _bash(
        self, snippet: Snippet, extra: Mapping[str, str], timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return self._process(["bash", "-c", self.script(snippet)], extra, timeout)

    def _process(
        self, command: list[str], extra: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.env, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )


def _is_state(snippet: Snippet) -> bool:
    return snippet.language == "shell" and snippet.program in rules.STATE
