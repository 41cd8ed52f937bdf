"""ViT backbones; subclass PlainViT to add another."""

from .base import FACETS, PlainViT
from .pretrained import NamedViT, find_vit
from .timm_vit import TimmViT
from .vit import ViT

__all__ = ["FACETS", "NamedViT", "PlainViT", "TimmViT", "ViT", "find_vit"]
