"""Features of a frozen ViT, as they are or lifted: what LiFT is trained on, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import Tensor

from .agreement import check_lift_on_net, check_lift_shape
from .lift import FeatureUpsampler
from .plain_vit import PlainViT


class FeatureExtractor(Backbone):
    """A ViT's features, from any block and facet, and LiFT behind them.

    Names in the state dict are ``net.*`` and ``lift.*``, as in a detector. With a ``layer`` before the last, what comes
    behind it stays in the state dict and gets no gradients: freeze the ViT, or take the last layer.

    Attributes:
        net: the ViT.
        lift: what doubles its map, or None.
        layer: the block, counted from 0.
        facet: what of the block.
        norm: whether the ViT's final norm is applied.
        steps: how often LiFT doubles the map.
    """

    def __init__(
        self,
        net: PlainViT,
        lift: FeatureUpsampler | None = None,
        *,
        layer: int | None = None,
        facet: str = "token",
        norm: bool | None = None,
        steps: int = 1,
        out_feature: str = "last_feat",
        allow_lift: Sequence[str] = (),
    ) -> None:
        """
        Args:
            net: a :class:`lift_det.TimmViT` or :class:`lift_det.ViT`.
            lift: a :class:`lift_det.LiFT` for these features; ``None`` gives them as they are.
            layer: the block that the features are from, counted from 0 as in the paper and in
                ``window_block_indexes``, or from the end if negative; ``None`` is the last. Later ones are not run.
            facet: ``"token"`` is the block's output. ``"query"``, ``"key"`` and ``"value"`` are what its attention
                projects its normed input to, heads side by side, before rotary positions and before any norm of queries
                and keys, as in "Deep ViT Features as Dense Visual Descriptors" (Amir et al., arXiv 2112.05814).
            norm: put tokens of whichever block through the ViT's final norm. ``None`` does if the ViT has one. Other
                facets are never normed.
            steps: how often LiFT doubles the map; 0 gives it as it is.
            out_feature: name of the map that :meth:`forward` gives.
            allow_lift: in which settings a LiFT may have been trained on other features than these, such as
                ``("backbone", "weights")``; see :func:`lift_det.modeling.check_lift`.

        Raises:
            ValueError: another kind of ViT, a layer, facet or norm that it does not have, or a LiFT that does not fit
                the width or patch size of the features.
            CheckpointError: a LiFT that was trained on other features. The ViT's weights are compared only if it was
                built with them; those that come later can be compared with ``check_lift(lift, self.settings())``.
        """
        super().__init__()
        if not isinstance(net, PlainViT):
            raise ValueError(
                f"FeatureExtractor takes a lift_det.TimmViT or a lift_det.ViT (which is detectron2's), not a "
                f"{type(net).__module__}.{type(net).__name__}."
            )
        if steps < 0:
            raise ValueError(f"steps={steps}: LiFT doubles the map no or more times.")
        self.layer, self.norm = net.resolve(layer, facet, norm)
        self.facet = facet
        self.net = net
        self.lift = lift
        self.steps = steps if lift is not None else 0
        self._channels = net.map_channels(self.layer, facet)
        self.allow_lift = tuple(allow_lift)
        check_lift_on_net(lift, self, allow_lift)
        check_lift_shape(lift, ShapeSpec(channels=self._channels, stride=net.patch_size))

        stride = net.patch_size / 2**self.steps  # a patch of 14 is 3.5 pixels after two steps
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: self._channels}
        self._out_feature_strides = {out_feature: int(stride) if stride.is_integer() else stride}

    def extract(self, images: Tensor) -> Tensor:
        """The ViT's own features.

        Args:
            images: (N, 3, H, W), normalised with the ViT's statistics; H and W multiples of the patch size.

        Returns:
            (N, C, H / patch_size, W / patch_size)

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        return self.net.feature_map(images, self.layer, self.facet, self.norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features, lifted if there is a LiFT.

        Args:
            images: as in :meth:`extract`.

        Returns:
            ``{out_feature: (N, C, h, w)}`` with ``h = H / patch_size · 2**steps``, and w likewise.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        features = self.extract(images)
        if self.steps:
            features = self.lift.upsample(images, features, self.steps)
        return {self._out_features[0]: features}

    def settings(self) -> dict[str, str]:
        """Which features these are, as metadata for a LiFT that is trained on them (see :meth:`PlainViT.settings`)."""
        return self.net.settings(self.layer, self.facet, self.norm)

    def describe_features(self) -> dict[str, str]:
        """The part of :meth:`settings` that can be said without reading the weights."""
        return self.net.describe_features(self.layer, self.facet, self.norm)

    @property
    def weights_given(self) -> bool:
        """Whether the ViT was built with trained weights."""
        return self.net.weights_given

    @property
    def patch_size(self) -> int:
        """Of the ViT, in pixels."""
        return self.net.patch_size

    @property
    def embed_dim(self) -> int:
        """The ViT's width. The features' own is in :meth:`output_shape`: some models' projections have another."""
        return self.net.embed_dim

    @property
    def num_heads(self) -> int:
        """Of the ViT's attention."""
        return self.net.num_heads

    @property
    def depth(self) -> int:
        """Blocks that the ViT has; not all are run if the features are from one before the last."""
        return self.net.depth

    @property
    def pixel_mean(self) -> tuple[float, ...] | None:
        """RGB, 0 to 255, of the images that the weights were trained on; None for detectron2's ViT."""
        return self.net.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...] | None:
        """Likewise."""
        return self.net.pixel_std

    @property
    def size_divisibility(self) -> int:
        """Images have to be padded to whole patches."""
        return self.net.patch_size
