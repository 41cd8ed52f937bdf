"""Errors about data sets."""

from __future__ import annotations

import os
from pathlib import Path


class DatasetError(RuntimeError):
    """Data cannot be used; the message says what was expected, what was found and what to do."""


def datasets_root_note() -> str:
    """Returns a sentence with the value of ``DETECTRON2_DATASETS``."""
    value = os.environ.get("DETECTRON2_DATASETS")
    current = f"is currently '{value}'" if value else f"is not set, so 'datasets' under '{Path.cwd()}' is used"
    return f"DETECTRON2_DATASETS {current} (it is read once, when detectron2.data is first imported)."
