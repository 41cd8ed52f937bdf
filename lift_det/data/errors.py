"""Errors about datasets."""

from __future__ import annotations

import os
from pathlib import Path


class DatasetError(RuntimeError):
    """Raised for data that cannot be used."""


def datasets_root_note() -> str:
    """Returns a sentence about ``DETECTRON2_DATASETS`` for error messages."""
    value = os.environ.get("DETECTRON2_DATASETS")
    current = f"is currently '{value}'" if value else f"is not set, so 'datasets' under '{Path.cwd()}' is used"
    return f"DETECTRON2_DATASETS {current} (it is read once, when detectron2.data is first imported)."
