"""State dicts only: reading the files they come in, and saying what fitted a model and what did not."""

from .files import CheckpointError, read_state_dict, strip_prefix, write_atomically
from .report import LoadReport, check_partial_load, compare_state_dicts, load_strictly

__all__ = [
    "CheckpointError",
    "LoadReport",
    "check_partial_load",
    "compare_state_dicts",
    "load_strictly",
    "read_state_dict",
    "strip_prefix",
    "write_atomically",
]
