"""Checks, before anything imports detectron2, that it has ViTDet.

detectron2 is the one requirement that `setup.py` cannot declare (it says why). Only the standard library is imported:
`tools/install_detectron2.py` runs this file by path, before torch is installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

# A build of detectron2's main branch of December 2024. Its wheel is tagged for CPython 3.10, but only `_C` depends on
# the version of Python, and ViTDet does not use it: hence `--python-version`, which pip allows with `--target` only.
# `--no-deps`, because it declares numpy<2; `setup.py` has its requirements.
DETECTRON2_REQUIREMENT = "sal-detectron2==0.7.2"
DETECTRON2_PIP_ARGUMENTS = ("install", "--no-deps", "--only-binary=:all:", "--python-version", "3.10")
DETECTRON2_INSTALL_COMMAND = (
    f"python -m pip {' '.join(DETECTRON2_PIP_ARGUMENTS)} "
    """--target "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" """
    f"{DETECTRON2_REQUIREMENT}"
)
SETUPTOOLS_INSTALL_COMMAND = "python -m pip install 'setuptools<81'"


def detectron2_folder() -> Path | None:
    """The folder of the installed detectron2, without importing it; None if there is none."""
    spec = importlib.util.find_spec("detectron2")
    # a mere folder of that name has a spec without origin
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def detectron2_problem() -> str | None:
    """A message that says why lift_det cannot use the installed detectron2, and what to do; None if it can."""
    folder = detectron2_folder()
    if folder is None:
        return (
            "lift_det needs detectron2, which is not installed. In a checkout of lift_det run\n"
            "    python tools/install_detectron2.py\n"
            "elsewhere\n"
            f"    {DETECTRON2_INSTALL_COMMAND}\n"
            "or build it from source (https://github.com/facebookresearch/detectron2)."
        )
    if not (folder / "modeling" / "backbone" / "vit.py").is_file():
        return (
            f"lift_det needs a detectron2 newer than 0.6: {folder} has no modeling/backbone/vit.py. Replace it:\n"
            "    python -m pip uninstall detectron2\n"
            f"    {DETECTRON2_INSTALL_COMMAND}"
        )
    model_zoo = folder / "model_zoo" / "model_zoo.py"
    needs_pkg_resources = model_zoo.is_file() and "import pkg_resources" in model_zoo.read_text(encoding="utf-8")
    if needs_pkg_resources and importlib.util.find_spec("pkg_resources") is None:
        return (
            "detectron2 imports pkg_resources, which setuptools has up to version 80. Run\n"
            f"    {SETUPTOOLS_INSTALL_COMMAND}"
        )
    return None


def require_detectron2() -> None:
    """Raises an `ImportError` with what to do if there is no detectron2 that lift_det can use."""
    problem = detectron2_problem()
    if problem is not None:
        raise ImportError(problem)
