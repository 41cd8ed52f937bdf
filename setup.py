"""Packaging of lift_det. `make install` sets a checkout up; this file says what is installed and what it needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CONFIG_SUFFIXES = (".py", ".yaml")

# detectron2 is not in this list because the package index has no release of it with ViTDet (the last one is 0.6, of
# 2021): a requirement on the name would install a detectron2 that cannot work. `tools/install_detectron2.py` installs
# one that does, or keeps yours; `import lift_det` says so where there is none. It is installed without its
# dependencies (it declares numpy<2), so the second half of the list carries them.
INSTALL_REQUIRES = [
    # torch.library.custom_op is of 2.4.
    "torch>=2.4",
    "torchvision>=0.19",
    # forward_intermediates on every ViT, and the DINOv3 models.
    "timm>=1.0.20",
    "numpy>=1.24",
    "safetensors>=0.4",
    "shapely>=2",  # fvcore crops polygons with it: the large-scale jitter
    "pycocotools>=2.0.7",
    # The COCO and LVIS evaluation; before 1.2.1 LVIS's limit on detections was another (docs/evaluation.md).
    "hotcoco>=1.2.1,<2",
    # Headless, because the other one needs libGL, which servers and containers lack; without it not even
    # `import detectron2` works. Nothing here opens a window. Both install the same `cv2`: keep only one of them.
    "opencv-python-headless>=4.8",
    # What detectron2 needs, besides what is above.
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
    # detectron2's model_zoo imports pkg_resources, which setuptools drops after 80.
    "setuptools<81",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
]

# `lift-det export` to ONNX; a .pt2 needs torch alone.
EXPORT_REQUIRES = [
    "onnx>=1.16",
    "onnxruntime>=1.20",
    # the one that was tested; earlier ones may resize otherwise at the border, which the comparison would find
    "onnxscript>=0.7",
]

DEV_REQUIRES = [
    *EXPORT_REQUIRES,
    # tests/docs runs docs/tour.ipynb; `make docs` is pdoc's.
    "ipykernel>=6.29",
    "jupyter_client>=8.6",
    "nbclient>=0.10.1",
    "nbformat>=5.10",
    "pdoc>=16",
    "pre-commit",
    "pytest>=8",
    "pytest-xdist",
    # The formatter's output changes between minor versions: constraints.txt pins the one that the project uses.
    "ruff>=0.9",
    # tests/checkpoint runs its ViTs on the weights that lift_det reads from its files; skipped without it.
    "transformers>=4.50",
    # tests/test_packaging.py builds the wheel without build isolation, so that it needs no network.
    "wheel",
]


def read_version() -> str:
    """The version from lift_det/version.py, read as text: importing the package would need all that it needs."""
    text = (ROOT / "lift_det" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('lift_det/version.py has no line of the form: __version__ = "1.2.3"')
    return match.group(1)


def read_readme() -> str:
    """The README for the package's page; empty where a partial copy of the sources has none."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


def config_packages() -> dict[str, str]:
    """Package name -> folder relative to the root, for `configs/` and every folder under it that holds configs.

    The configs stand at the top of the checkout, where detectron2's users look for them, and travel in the wheel as
    `lift_det/model_zoo/configs/`, where `lift_det.model_zoo` looks for them. detectron2 does this with a symbolic
    link that it makes in the source tree; a mapping of folders needs none.
    """
    mapping = {}
    for folder in sorted({path.parent for path in (ROOT / "configs").rglob("*") if path.suffix in CONFIG_SUFFIXES}):
        relative = folder.relative_to(ROOT)
        if not any(part == "__pycache__" for part in relative.parts):
            mapping[".".join(("lift_det", "model_zoo", *relative.parts))] = relative.as_posix()
    return mapping


class CleanBuildPy(build_py):
    """`build_py` from an empty folder: pip builds in the source tree, and a config that was renamed or removed since
    the last build would otherwise still be in `build/`, and so in the wheel."""

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
