"""Is there a detectron2 that has ViTDet? Answered before anything imports it, so that the answer is a sentence.

detectron2 is the one requirement that `setup.py` cannot declare (it says why), so a plain `pip install` leaves it out.
This file imports the standard library only: `tools/install_detectron2.py` runs it by path, in an environment where
neither lift_det nor torch need be installed, and `import lift_det` can afford to call it first.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

# The build of detectron2's main branch (December 2024, with ViTDet) that lift_det is tested with. Its wheel is tagged
# for CPython 3.10 and holds nothing that is bound to it but `_C`, which ViTDet does not use, hence `--python-version`;
# pip allows that with `--target` only. `--no-deps`: it declares numpy<2, and `setup.py` carries what it needs.
DETECTRON2_REQUIREMENT = "sal-detectron2==0.7.2"
DETECTRON2_PIP_ARGUMENTS: tuple[str, ...] = (
    "install",
    "--no-deps",
    "--only-binary=:all:",
    "--python-version",
    "3.10",
)
DETECTRON2_INSTALL_COMMAND = (
    f"python -m pip {' '.join(DETECTRON2_PIP_ARGUMENTS)} "
    """--target "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" """
    f"{DETECTRON2_REQUIREMENT}"
)
SETUPTOOLS_INSTALL_COMMAND = "python -m pip install 'setuptools<81'"


def _detectron2_spec() -> importlib.machinery.ModuleSpec | None:
    """The spec of the installed package, or None; a mere folder of that name (a namespace package) counts as None."""
    spec = importlib.util.find_spec("detectron2")
    return spec if spec is not None and spec.origin is not None else None


def detectron2_folder() -> Path | None:
    """The folder that `import detectron2` would import from, without importing it; None if there is none."""
    spec = _detectron2_spec()
    return None if spec is None else Path(spec.origin).parent


def detectron2_problem() -> str | None:
    """What keeps lift_det from using the detectron2 at hand and what to do about it, in one message; None if nothing.

    It looks at files only: detectron2 takes seconds to import, and a broken one would raise from somewhere deep.
    """
    folder = detectron2_folder()
    if folder is None:
        return (
            "lift_det needs detectron2, which is not installed. In a checkout of lift_det run\n"
            "    python tools/install_detectron2.py\n"
            "and anywhere else, with the python that is to have it,\n"
            f"    {DETECTRON2_INSTALL_COMMAND}\n"
            "or build it from source (https://github.com/facebookresearch/detectron2)."
        )
    if not (folder / "modeling" / "backbone" / "vit.py").is_file():
        return (
            f"lift_det needs a detectron2 that has ViTDet, and the one in {folder} has no modeling/backbone/vit.py: "
            "it is 0.6 or older. Remove it with\n"
            "    python -m pip uninstall detectron2\n"
            "then install one of detectron2's main branch:\n"
            f"    {DETECTRON2_INSTALL_COMMAND}"
        )
    # Asked of the file, not of a version number: a detectron2 that no longer needs pkg_resources is welcome.
    model_zoo = folder / "model_zoo" / "model_zoo.py"
    needs_pkg_resources = model_zoo.is_file() and "import pkg_resources" in model_zoo.read_text(encoding="utf-8")
    if needs_pkg_resources and importlib.util.find_spec("pkg_resources") is None:
        return (
            "detectron2's model_zoo imports pkg_resources, which is not there: setuptools is missing, or 81 or newer, "
            f"which may lack it. Run\n    {SETUPTOOLS_INSTALL_COMMAND}"
        )
    return None


def require_detectron2() -> None:
    """Raise an `ImportError` that names the command to run unless there is a detectron2 that lift_det can use."""
    problem = detectron2_problem()
    if problem is not None:
        raise ImportError(problem)
