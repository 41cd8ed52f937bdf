"""State dicts only: reading the files they come in, and saying what fitted a model and what did not."""

from .files import METADATA_KEY, CheckpointError, read_checkpoint, read_state_dict, strip_prefix
from .report import LoadReport, check_partial_load, compare_state_dicts, load_strictly
from .vit_formats import check_head_count, convert_to_detectron2, convert_vit, recognise_vit

__all__ = [
    "METADATA_KEY",
    "CheckpointError",
    "LoadReport",
    "check_head_count",
    "check_partial_load",
    "compare_state_dicts",
    "convert_to_detectron2",
    "convert_vit",
    "load_strictly",
    "read_checkpoint",
    "read_state_dict",
    "recognise_vit",
    "strip_prefix",
]
