"""Base class of the ViTs."""

from __future__ import annotations

from abc import abstractmethod

from detectron2.modeling.backbone import Backbone
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from ..feature_spec import FeatureSpec, weights_fingerprint

#: what a feature map is taken from: a block's output, or a projection of its attention
FACETS = ("token", "query", "key", "value")
# In these blocks, norm1 comes after the attention instead of before it.
_POST_NORM = (EvaBlockPostNorm, ResPostBlock)


class PlainViT(Backbone):
    """Base class of ViTs whose features can be taken from any block.

    Subclasses implement the abstract members, and set the attributes and detectron2's ``_out_features``,
    ``_out_feature_channels`` and ``_out_feature_strides``. A subclass that also derives from another ViT lists this
    class first.
    """

    patch_size: int  # in pixels; also the stride of the feature map
    embed_dim: int
    depth: int
    num_heads: int
    pixel_mean: tuple[float, ...] | None = None  # of the images that the ViT was trained on, RGB, 0 to 255
    pixel_std: tuple[float, ...] | None = None
    weights_given: bool = False  # whether the ViT was built with trained weights

    @property
    def has_final_norm(self) -> bool:
        """Whether there is a norm after the last block."""
        return False

    @property
    @abstractmethod
    def description(self) -> str:
        """The architecture as text, without the weights; two ViTs with the same text are the same network."""

    @property
    @abstractmethod
    def transformer_blocks(self) -> nn.ModuleList:
        """The transformer blocks."""

    @property
    def largest_window(self) -> int:
        """Side of the largest attention window, in patches; 0 without windows."""
        return 0

    @abstractmethod
    def feature_map(
        self, x: Tensor, layer: int | None = None, facet: str = "token", final_norm: bool | None = None
    ) -> Tensor:
        """Computes the feature map of one block. Later blocks are not run.

        Args:
            x: (N, 3, H, W), normalised; H and W multiples of the patch size.
            layer: index of the block, from 0, or negative from the end. Default: the last block.
            facet: ``"token"`` for the block's output; ``"query"``, ``"key"`` or ``"value"`` for that projection of its
                attention (Amir et al., arXiv 2112.05814), with the heads concatenated, before any query-key norm and
                rotary position embedding.
            final_norm: whether the ViT's final norm is applied to the tokens, of any block. Default: True if the ViT
                has a final norm.

        Returns:
            (N, C, H / patch_size, W / patch_size), with C from :meth:`map_channels`.

        Raises:
            ValueError: H or W is not a multiple of the patch size; see also :meth:`resolve`.
        """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the last block's map as ``{out_feature: (N, embed_dim, H / patch_size, W / patch_size)}``."""
        return {self._out_features[0]: self.feature_map(x)}

    def resolve(self, layer: int | None, facet: str, final_norm: bool | None) -> tuple[int, bool]:
        """Resolves the arguments of :meth:`feature_map`: the block's index from 0, and whether the norm is applied.

        Raises:
            ValueError: the ViT has no such block, facet or final norm, or the block has no separate projections.
        """
        if facet not in FACETS:
            raise ValueError(f"facet is '{facet}'; it can be one of {', '.join(FACETS)}.")
        index = self.depth - 1 if layer is None else layer + self.depth if layer < 0 else layer
        if not 0 <= index < self.depth:
            raise ValueError(f"layer={layer}: the ViT has blocks 0 to {self.depth - 1}, or {-self.depth} to -1.")
        if facet == "token":
            if final_norm and not self.has_final_norm:
                raise ValueError(
                    "final_norm=True, and this ViT has no final norm: detectron2's has none, and a TimmViT has none if "
                    "it was built with final_norm=False or if its timm model normalises only the pooled vector."
                )
            return index, self.has_final_norm if final_norm is None else final_norm
        if final_norm:
            raise ValueError(f"final_norm=True is for the facet 'token', not for '{facet}'.")
        block = self.transformer_blocks[index]
        if not hasattr(block, "norm1") or not hasattr(getattr(block, "attn", None), "qkv"):
            raise ValueError(f"A {type(block).__name__} has no separate {facet}: use the facet 'token'.")
        return index, False

    def map_channels(self, layer: int | None = None, facet: str = "token") -> int:
        """Returns the channels of :meth:`feature_map`; projections may have another width than ``embed_dim``."""
        index, _ = self.resolve(layer, facet, None)
        if facet == "token":
            return self.embed_dim
        attention = self.transformer_blocks[index].attn
        if attention.qkv is not None:
            return attention.qkv.out_features // 3
        return getattr(attention, f"{facet[0]}_proj").out_features

    def feature_spec(
        self, layer: int | None = None, facet: str = "token", final_norm: bool | None = None, *, weights: bool = True
    ) -> FeatureSpec:
        """Describes the features of :meth:`feature_map`; ``weights`` includes a fingerprint of the ViT's weights."""
        index, final_norm = self.resolve(layer, facet, final_norm)
        return FeatureSpec(
            backbone=self.description,
            in_channels=self.map_channels(index, facet),
            patch_size=self.patch_size,
            layer=index,
            facet=facet,
            final_norm=final_norm,
            weights=weights_fingerprint(self) if weights else None,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def grid_size(self, x: Tensor) -> tuple[int, int]:
        """Returns the rows and columns of patches in images (N, 3, H, W); raises ValueError for partial patches."""
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"The ViT has patches of {self.patch_size} pixels and cannot take images of {height}×{width}: resize "
                f"or pad them to multiples of {self.patch_size}."
            )
        return height // self.patch_size, width // self.patch_size


def project(block: nn.Module, tokens: Tensor, facet: str) -> Tensor:
    """Computes the queries, keys or values of a block of timm or detectron2: (..., C) → (..., heads · head width).

    Each token is projected by itself, so windows make no difference.
    """
    x = tokens if isinstance(block, _POST_NORM) else block.norm1(tokens)
    attention = block.attn
    if attention.qkv is None:  # three projections, as in some Eva models
        return getattr(attention, f"{facet[0]}_proj")(x)
    x = attention.qkv(x).chunk(3, dim=-1)[FACETS.index(facet) - 1]
    bias = getattr(attention, f"{facet[0]}_bias", None)  # Eva stores the biases of a joint projection separately
    return x if bias is None else x + bias
