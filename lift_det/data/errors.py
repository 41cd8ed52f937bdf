"""The error of this package, and the sentence that says where data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path


class DatasetError(RuntimeError):
    """Data that cannot be used: the message says what was expected, what came and what to do."""


def datasets_root_note() -> str:
    """Returns a sentence that states what ``DETECTRON2_DATASETS`` is in this process."""
    value = os.environ.get("DETECTRON2_DATASETS")
    current = f"is currently '{value}'" if value else f"is not set, so 'datasets' under '{Path.cwd()}' is used"
    return f"DETECTRON2_DATASETS {current} (it is read once, when detectron2.data is first imported)."
