"""Checks for optional packages."""

import importlib.util


def has_triton() -> bool:
    """Returns whether Triton is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None
