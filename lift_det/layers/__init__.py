"""Operators with several implementations: attention with relative positions, and pasting of masks."""

from .mask_paste import mask_to_rle, paste_masks
from .rel_pos_attention import rel_pos_attention

__all__ = ["mask_to_rle", "paste_masks", "rel_pos_attention"]
