"""Reading checkpoints, recognising their formats, and checking that they fit a model."""

from .files import METADATA_KEY, CheckpointError, read_checkpoint, read_state_dict, strip_prefix
from .report import check_partial_load, load_strictly
from .vit_formats import check_head_count, convert_vit, recognise_vit

__all__ = [
    "METADATA_KEY",
    "CheckpointError",
    "check_head_count",
    "check_partial_load",
    "convert_vit",
    "load_strictly",
    "read_checkpoint",
    "read_state_dict",
    "recognise_vit",
    "strip_prefix",
]
