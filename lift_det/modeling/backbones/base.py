"""The base class of the ViTs: the map of any block and facet, and a description of it."""

from __future__ import annotations

from abc import abstractmethod

from detectron2.modeling.backbone import Backbone
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from ..feature_spec import FeatureSpec, weights_fingerprint

#: What can be read from a block: its output, or a projection of its attention.
FACETS = ("token", "query", "key", "value")
# Their attention sees the block's input as it is; their norm1 comes behind it.
_POST_NORM = (EvaBlockPostNorm, ResPostBlock)


class PlainViT(Backbone):
    """A ViT whose features can be taken from any block.

    A new kind of ViT is a subclass with what is abstract here and, as any detectron2 Backbone, ``forward`` and
    ``output_shape``; extractor, pyramid, LiFT's training and export ask for nothing else. Where it derives from another
    project's ViT, too, this class comes first.

    Attributes:
        patch_size: pixels, the stride of the map.
        embed_dim: C of the tokens.
        depth: number of blocks.
        num_heads: of the attention.
        pixel_mean, pixel_std: of the images that the weights were trained on, RGB, 0 to 255; None where the network
            alone does not say.
        weights_given: whether the model was built with trained weights; if not they are random, or come later from a
            checkpoint.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    weights_given: bool = False

    @property
    def has_norm(self) -> bool:
        """Whether there is a norm behind the last block."""
        return False

    @property
    @abstractmethod
    def description(self) -> str:
        """The network, without its weights: what builds the same one again."""

    @property
    @abstractmethod
    def transformer_blocks(self) -> nn.ModuleList:
        """The transformer blocks."""

    @property
    def largest_window(self) -> int:
        """Side of the largest attention window, in patches; 0 without windows. Export traces with larger maps."""
        return 0

    @property
    def fixed_size_reason(self) -> str:
        """Why the ViT can be exported for one image size only; empty where any size is possible."""
        return ""

    @abstractmethod
    def feature_map(
        self, x: Tensor, layer: int | None = None, facet: str = "token", norm: bool | None = None
    ) -> Tensor:
        """The features of one block; no later block is run.

        Args:
            x: (N, 3, H, W), normalised; H and W multiples of the patch size.
            layer: the block, counted from 0, or from the end if negative; ``None`` is the last.
            facet: ``"token"`` is the block's output; ``"query"``, ``"key"`` and ``"value"`` are what its attention
                projects its (normed) input to, heads side by side, before any norm of queries and keys and before
                rotary positions (Amir et al., arXiv 2112.05814).
            norm: put the tokens through the ViT's final norm, behind whichever block they are from; ``None`` does if
                the model has it.

        Returns:
            (N, C, H / patch_size, W / patch_size), with C from :meth:`map_channels`.

        Raises:
            ValueError: sizes that are not whole patches, or as :meth:`resolve`.
        """

    def resolve(self, layer: int | None, facet: str, norm: bool | None) -> tuple[int, bool]:
        """Turns what :meth:`feature_map` takes into the block, counted from 0, and whether the final norm is applied.

        Raises:
            ValueError: no such block or facet, a norm that the model lacks or that is asked for behind a projection,
                or a block whose attention has no projections of its own.
        """
        if facet not in FACETS:
            raise ValueError(f"facet is '{facet}'; it can be one of {', '.join(FACETS)}.")
        index = self.depth - 1 if layer is None else layer + self.depth if layer < 0 else layer
        if not 0 <= index < self.depth:
            raise ValueError(
                f"layer {layer} is no block: the ViT has {self.depth}, 0 to {self.depth - 1} or {-self.depth} to -1."
            )
        if facet == "token":
            if norm and not self.has_norm:
                raise ValueError(
                    "norm=True, and this ViT has no norm behind its last block: detectron2's never has, and a TimmViT "
                    "has none if it was built with norm=False or if timm's model normalises only the pooled vector. "
                    "Build it with the norm, or leave norm out."
                )
            return index, self.has_norm if norm is None else norm
        if norm:
            raise ValueError(
                f"norm=True is for the facet 'token': the final norm is made for tokens, not for a {facet}."
            )
        block = self.transformer_blocks[index]
        if not _has_projections(block):
            raise ValueError(
                f"The ViT's blocks are of the kind {type(block).__name__}, whose attention has no {facet} of its own "
                "that could be taken: use the facet 'token'."
            )
        return index, False

    def map_channels(self, layer: int | None = None, facet: str = "token") -> int:
        """C of :meth:`feature_map`: ``embed_dim``, but for projections to another width.

        Raises:
            ValueError: as :meth:`resolve`.
        """
        index, _ = self.resolve(layer, facet, None)
        if facet == "token":
            return self.embed_dim
        attention = self.transformer_blocks[index].attn
        if attention.qkv is not None:
            return attention.qkv.out_features // 3
        return getattr(attention, f"{facet[0]}_proj").out_features

    def feature_spec(
        self, layer: int | None = None, facet: str = "token", norm: bool | None = None, *, weights: bool = True
    ) -> FeatureSpec:
        """Describes what :meth:`feature_map` gives.

        Args:
            layer, facet, norm: as in :meth:`feature_map`.
            weights: read the weights, as they are now, for their fingerprint.

        Raises:
            ValueError: as :meth:`resolve`.
        """
        index, norm = self.resolve(layer, facet, norm)
        return FeatureSpec(
            backbone=self.description,
            in_channels=self.map_channels(index, facet),
            patch_size=self.patch_size,
            layer=index,
            facet=facet,
            final_norm=norm,
            weights=weights_fingerprint(self) if weights else None,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )


def project(block: nn.Module, tokens: Tensor, facet: str) -> Tensor:
    """Queries, keys or values of a block.

    It is linear in each token, so that windows do not matter.

    Args:
        block: of timm or detectron2, one that :meth:`PlainViT.resolve` lets pass.
        tokens: (..., C), the block's input.
        facet: ``"query"``, ``"key"`` or ``"value"``.

    Returns:
        (..., heads · head width)
    """
    x = tokens if isinstance(block, _POST_NORM) else block.norm1(tokens)
    attention = block.attn
    if attention.qkv is None:  # Eva's and others' with three projections
        return getattr(attention, f"{facet[0]}_proj")(x)
    x = attention.qkv(x).chunk(3, dim=-1)[FACETS.index(facet) - 1]
    bias = getattr(attention, f"{facet[0]}_bias", None)  # Eva keeps those of a joint projection beside it
    return x if bias is None else x + bias


def _has_projections(block: nn.Module) -> bool:
    attention = getattr(block, "attn", None)
    return hasattr(block, "norm1") and hasattr(attention, "qkv")
