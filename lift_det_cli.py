"""Entry point of `lift-det`, outside the package so that `lift-det doctor` also runs where `import lift_det` fails."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `lift-det` with the given arguments (default: those of the process); returns the exit code.

    Where lift_det cannot be imported, the doctor still runs, and other subcommands report what is missing.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # warnings from importing detectron2 and fvcore, on every run
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release", category=UserWarning)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in record.getMessage())
    if not arguments or {"-h", "--help", "--version"}.intersection(arguments):
        _import_without_package(None)  # help needs no torch, whose import takes seconds
    else:
        try:
            importlib.import_module("lift_det")
        except Exception as error:  # a broken torch or torchvision raises more than ImportError
            if arguments[0] != "doctor":
                if not isinstance(error, ImportError):
                    raise
                print(f"lift-det: {error}\nRun `lift-det doctor` to check the environment.", file=sys.stderr)
                return 1
            _import_without_package(error)
    return importlib.import_module("lift_det.cli").main(arguments)


def _import_without_package(error: Exception | None) -> None:
    """Makes `lift_det.cli` importable without running `lift_det/__init__.py`; keeps the error for the doctor."""
    if "lift_det" in sys.modules:
        return
    spec = importlib.util.find_spec("lift_det")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("lift_det is not installed for this Python.") from error
    package = types.ModuleType("lift_det")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    package.__import_error__ = error
    sys.modules["lift_det"] = package


if __name__ == "__main__":
    sys.exit(main())
