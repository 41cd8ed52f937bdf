#!/usr/bin/env python
"""Installs a detectron2 with ViTDet for the Python that runs this script.

    python tools/install_detectron2.py

Nothing is compiled. An installed detectron2 is kept if it has ViTDet. An older one is never overwritten: the script
prints what to do and exits with 1.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
VERIFY = "import detectron2; from detectron2.modeling import ViT, SimpleFeaturePyramid; print(detectron2.__version__)"


def load_requirements_check() -> ModuleType:
    """Loads lift_det/requirements_check.py by its path, because importing lift_det needs detectron2."""
    path = ROOT / "lift_det" / "requirements_check.py"
    spec = importlib.util.spec_from_file_location("requirements_check", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verified_version() -> str:
    """Imports detectron2's ViT in a new process, because this one may not see new packages. Exits if that fails."""
    # -P: ignore a folder named detectron2 in the working directory
    flags = ["-P"] if sys.version_info >= (3, 11) else []
    process = subprocess.run([sys.executable, *flags, "-c", VERIFY], capture_output=True, text=True)
    if process.returncode:
        details = "\n".join(process.stderr.strip().splitlines()[-5:])
        sys.exit(
            f"detectron2 is installed, but its ViT cannot be imported:\n{details}\n"
            "If a module is missing, install lift_det first (python -m pip install -e .), which installs detectron2's "
            "dependencies. If detectron2 itself is broken, remove its folder and run this script again."
        )
    return process.stdout.strip().splitlines()[-1]


def main() -> None:
    check = load_requirements_check()
    folder = check.detectron2_folder()
    if folder is not None:
        problem = check.detectron2_problem()
        if problem is not None:
            sys.exit(problem)
        print(f"detectron2 {verified_version()} with ViTDet is already in {folder}: nothing to do.")
        return
    purelib = Path(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "pip", *check.DETECTRON2_PIP_ARGUMENTS]
    command += ["--target", str(purelib), check.DETECTRON2_REQUIREMENT]
    print(" ".join(command), flush=True)
    if subprocess.run(command).returncode:
        sys.exit(
            "pip could not install detectron2; its message is above. If your package index does not have this wheel, "
            "build detectron2 from source, which needs a C++ compiler:\n"
            f"    {sys.executable} -m pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git'"
        )
    print(f"Installed detectron2 {verified_version()} with ViTDet.")
    trainer = purelib / "tools" / "lazyconfig_train_net.py"
    if not trainer.is_file():  # pip's --target does not overwrite folders
        print(f"Its script {trainer} was not installed, because another package has a folder of this name.")


if __name__ == "__main__":
    main()
