"""Importing lift_det in a new process only registers names."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lift_det"


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that imports lift_det from this checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_import_without_triton_changes_no_global_state() -> None:
    """No seeding, no TF32, no CUDA, no threads, no output."""
    process = run_python(
        """
        import sys
        sys.modules["triton"] = None
        import random
        import numpy, torch
        import detectron2.modeling, timm  # not tested

        def state():
            return {
                "torch seed": torch.initial_seed(),
                "torch random state": torch.get_rng_state().tolist(),
                "python random state": random.getstate(),
                "numpy random state": str(numpy.random.get_state()),
                "matmul TF32": torch.backends.cuda.matmul.allow_tf32,
                "cuDNN": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
                          torch.backends.cudnn.deterministic),
                "matmul precision": torch.get_float32_matmul_precision(),
                "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
                "SDPA backends": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
                                  torch.backends.cuda.mem_efficient_sdp_enabled()),
                "default dtype": torch.get_default_dtype(),
                "gradients": torch.is_grad_enabled(),
                "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
                "CUDA initialised": torch.cuda.is_initialized(),
            }

        before = state()
        import lift_det
        after = state()
        changed = [name for name in before if before[name] != after[name]]
        assert not changed, changed
        assert not after["CUDA initialised"]
        from detectron2.modeling import BACKBONE_REGISTRY
        assert "build_lift_vitdet_backbone" in BACKBONE_REGISTRY
        """
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""


def test_import_without_detectron2_names_the_command() -> None:
    process = run_python("import sys; sys.modules['detectron2'] = None; import lift_det")
    assert process.returncode == 1
    last_lines = process.stderr[process.stderr.rindex("ImportError: ") :]
    assert "python tools/install_detectron2.py" in last_lines
    assert "sal-detectron2==" in last_lines and "--no-deps" in last_lines and "--target" in last_lines


def test_requirements_check(tmp_path: Path) -> None:
    """It finds each problem without importing torch or detectron2."""
    old = tmp_path / "old" / "detectron2"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    new = tmp_path / "new" / "detectron2"
    (new / "modeling" / "backbone").mkdir(parents=True)
    (new / "model_zoo").mkdir()
    (new / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (new / "modeling" / "backbone" / "vit.py").touch()
    (new / "model_zoo" / "model_zoo.py").write_text("import os\nimport pkg_resources\n")
    (tmp_path / "folder" / "detectron2").mkdir(parents=True)
    process = run_python(
        f"""
        import sys
        sys.path = [path for path in sys.path if "site-packages" not in path]
        from importlib.util import module_from_spec, spec_from_file_location
        spec = spec_from_file_location("check", {str(PACKAGE / "requirements_check.py")!r})
        check = module_from_spec(spec)
        spec.loader.exec_module(check)

        def problem(folder):
            sys.path.insert(0, folder)
            try:
                return check.detectron2_problem()
            finally:
                sys.path.pop(0)

        assert "not installed" in check.detectron2_problem()
        assert "not installed" in problem({str(tmp_path / "folder")!r})
        assert "vit.py" in problem({str(old.parent)!r})
        sys.modules["pkg_resources"] = None
        assert "setuptools<81" in problem({str(new.parent)!r})
        import types
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        sys.modules["pkg_resources"].__spec__ = spec
        assert problem({str(new.parent)!r}) is None
        assert "torch" not in sys.modules and "detectron2" not in sys.modules
        """
    )
    assert process.returncode == 0, process.stderr
