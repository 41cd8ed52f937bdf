"""Where the command `lift-det` starts: outside the package, so that `lift-det doctor` runs when the package does not.

`import lift_det` fills detectron2's registries and so fails where detectron2 is missing or torchvision is broken.
That is when the doctor is wanted, and `lift_det.cli` cannot be imported without its parent. Everything else is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lift-det` with the arguments given (default: the process's own); returns the exit code.

    If lift_det cannot be imported, `lift-det doctor` still examines the environment; any other subcommand says what
    is missing, or raises what the import raised where that says nothing about a missing requirement.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What detectron2 and fvcore raise while they are imported, on every run, and no user of ours can mend.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release", category=UserWarning)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in record.getMessage())
    if not arguments or {"-h", "--help", "--version"}.intersection(arguments):
        _stand_in_for_package(None)  # importing the package takes seconds, and help needs none of it
        return importlib.import_module("lift_det.cli").main(arguments)
    try:
        importlib.import_module("lift_det")
    except Exception as error:  # whatever a broken requirement raises: the doctor reports it, the others re-raise it
        if arguments[:1] != ["doctor"]:
            if not isinstance(error, ImportError):
                raise
            print(f"lift-det: {error}\n`lift-det doctor` examines the whole environment.", file=sys.stderr)
            return 1
        _stand_in_for_package(error)
    return importlib.import_module("lift_det.cli").main(arguments)


def _stand_in_for_package(error: Exception | None) -> None:
    """Put an empty `lift_det` in place of the one that was not, or could not be, imported; its submodules are found.

    The error that importing it raised is kept as `__import_error__`, for the doctor to report.
    """
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
