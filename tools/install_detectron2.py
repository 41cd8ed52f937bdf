#!/usr/bin/env python
"""Install a detectron2 that has ViTDet into the environment of the Python that runs this, unless it has one.

    python tools/install_detectron2.py

Nothing is compiled. A detectron2 that is already there is kept if it has ViTDet; an older one is never overwritten,
because someone's other code may need it: the script says what to do and exits with 1.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
# In a process of its own: an import that failed halfway leaves a module behind, and packages that pip has just put
# there are not seen by an interpreter that looked before.
VERIFY = "import detectron2; from detectron2.modeling import ViT, SimpleFeaturePyramid; print(detectron2.__version__)"


def load_requirements_check() -> ModuleType:
    """lift_det/requirements_check.py, by its path: importing lift_det would need the detectron2 to be installed."""
    path = ROOT / "lift_det" / "requirements_check.py"
    spec = importlib.util.spec_from_file_location("requirements_check", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verify() -> tuple[bool, str]:
    """Whether detectron2's ViT imports; with it the version, or the end of what the attempt printed."""
    # -P: a folder named detectron2 in the working directory is not the installed package.
    flags = ["-P"] if sys.version_info >= (3, 11) else []
    process = subprocess.run([sys.executable, *flags, "-c", VERIFY], capture_output=True, text=True)
    if process.returncode == 0:
        return True, process.stdout.strip().splitlines()[-1]
    return False, "\n".join(process.stderr.strip().splitlines()[-5:])


def main() -> int:
    """Install or keep detectron2; returns the exit code."""
    check = load_requirements_check()
    purelib = Path(sysconfig.get_path("purelib"))
    trainer = purelib / "tools" / "lazyconfig_train_net.py"

    if check.detectron2_folder() is not None:
        problem = check.detectron2_problem()
        if problem is not None:
            print(problem, file=sys.stderr)
            return 1
        works, details = verify()
        if works:
            print(f"detectron2 {details} with ViTDet is already in {check.detectron2_folder()}: nothing to do.")
            if not (check.detectron2_folder().parent / "tools" / "lazyconfig_train_net.py").is_file():
                print("Its tools/lazyconfig_train_net.py is not beside it; lift_det's own does the same and more.")
            return 0
        print(
            f"The detectron2 in {check.detectron2_folder()} has ViTDet but does not import:\n{details}\n"
            "If a module is missing, install lift_det first, which carries what detectron2 needs "
            "(python -m pip install -e .); if detectron2 itself is broken, remove that folder and run this again.",
            file=sys.stderr,
        )
        return 1

    command = [sys.executable, "-m", "pip", *check.DETECTRON2_PIP_ARGUMENTS]
    command += ["--target", str(purelib), check.DETECTRON2_REQUIREMENT]
    print(" ".join(command), flush=True)
    if subprocess.run(command).returncode != 0:
        print(
            "pip could not install it; its message is above. If your package index has no such wheel, build detectron2 "
            "from source, which needs a C++ compiler:\n"
            f"    {sys.executable} -m pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git'",
            file=sys.stderr,
        )
        return 1

    works, details = verify()
    if not works:
        print(
            f"detectron2 was installed into {purelib}, but its ViT does not import:\n{details}\n"
            "If a module is missing, install lift_det first, which carries what detectron2 needs: "
            "python -m pip install -e .",
            file=sys.stderr,
        )
        return 1
    if not trainer.is_file():
        # pip's --target leaves a folder that is already there alone, and says so in a warning only.
        print(
            f"detectron2 is installed, but its trainer is not at {trainer}: another package has put a 'tools' folder "
            "there. Remove or rename that folder and detectron2's, then run this again.",
            file=sys.stderr,
        )
        return 1
    print(f"Installed detectron2 {details} with ViTDet; its unmodified trainer is {trainer}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
