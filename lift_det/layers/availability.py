"""Which of the packages that fast backends need are here."""

import importlib.util


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported."""
    return importlib.util.find_spec("triton") is not None
