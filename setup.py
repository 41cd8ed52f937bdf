"""Packaging of lift_det. `make install` sets up a checkout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CONFIG_SUFFIXES = (".py", ".yaml")

# detectron2 is not a requirement because its last release on the package index (0.6, of 2021) has no ViTDet.
# tools/install_detectron2.py installs a newer one without its dependencies, because it declares numpy<2. They are the
# second half of the list.
INSTALL_REQUIRES = [
    # torch.library.custom_op was added in 2.4.
    "torch>=2.4",
    "torchvision>=0.19",
    # has forward_intermediates on every ViT, and the DINOv3 models
    "timm>=1.0.20",
    "numpy>=1.24",
    "safetensors>=0.4",
    "shapely>=2",  # fvcore crops polygons with it
    "pycocotools>=2.0.7",
    # COCO and LVIS evaluation; before 1.2.1, LVIS had another limit on detections (docs/evaluation.md)
    "hotcoco>=1.2.1,<2",
    # Headless, because the other package needs libGL, which servers and containers lack. Both install `cv2`, so only
    # one of them may be installed.
    "opencv-python-headless>=4.8",
    # requirements of detectron2 that are not above
    "black",
    "cloudpickle",
    "fvcore>=0.1.5.post20221221",
    "hydra-core>=1.1",
    "iopath>=0.1.9,<0.2",
    "matplotlib",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "Pillow>=7.1",
    "PyYAML>=5.1",
    # detectron2's model_zoo imports pkg_resources, which setuptools 81 removed
    "setuptools<81",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
]

# `lift-det export` to ONNX
EXPORT_REQUIRES = [
    "onnx>=1.16",
    "onnxruntime>=1.20",
    # earlier versions are untested
    "onnxscript>=0.7",
]

DEV_REQUIRES = [
    *EXPORT_REQUIRES,
    # nbclient runs docs/tour.ipynb in tests/docs; pdoc is for `make docs`
    "ipykernel>=6.29",
    "jupyter_client>=8.6",
    "nbclient>=0.10.1",
    "nbformat>=5.10",
    "pdoc>=16",
    "pre-commit",
    "pytest>=8",
    "pytest-xdist",
    # constraints.txt pins the version, because the formatter's output changes between minor versions
    "ruff>=0.9",
    # a reference in tests/checkpoint, which are skipped without it
    "transformers>=4.50",
    # tests/test_packaging.py builds the wheel without build isolation and network
    "wheel",
]


def read_version() -> str:
    """Reads the version without importing the package, which would need its requirements."""
    text = (ROOT / "lift_det" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('lift_det/version.py has no line of the form: __version__ = "1.2.3"')
    return match.group(1)


def read_readme() -> str:
    """Reads README.md, or returns an empty text if a partial copy of the sources has none."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


def config_packages() -> dict[str, str]:
    """Returns the folders of configs, relative to the root, by the names of the packages that they become.

    `configs/` is at the top of the checkout, as in detectron2, and is installed as `lift_det/model_zoo/configs/`.
    """
    mapping = {}
    for folder in sorted({path.parent for path in (ROOT / "configs").rglob("*") if path.suffix in CONFIG_SUFFIXES}):
        relative = folder.relative_to(ROOT)
        if not any(part == "__pycache__" for part in relative.parts):
            mapping[".".join(("lift_det", "model_zoo", *relative.parts))] = relative.as_posix()
    return mapping


class CleanBuildPy(build_py):
    """Removes the last build first, because it may contain configs that were renamed or removed since."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "lift_det", ignore_errors=True)
        super().run()


CONFIG_PACKAGES = config_packages()

setup(
    name="lift_det",
    version=read_version(),
    description="A detectron2 plug-in: ViTDet with LiFT, which doubles the resolution of a ViT's features",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["lift_det", "lift_det.*"]), *CONFIG_PACKAGES],
    package_dir=CONFIG_PACKAGES,
    package_data={name: ["*.yaml"] for name in CONFIG_PACKAGES},
    py_modules=["lift_det_cli"],
    install_requires=INSTALL_REQUIRES,
    extras_require={"dev": DEV_REQUIRES, "export": EXPORT_REQUIRES},
    # Not lift_det.cli itself: see lift_det_cli.py.
    entry_points={"console_scripts": ["lift-det = lift_det_cli:main"]},
    cmdclass={"build_py": CleanBuildPy},
    zip_safe=False,
)
