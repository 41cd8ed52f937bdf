"""Features of a frozen ViT, as they are or upsampled, and several upsamplings of the same features side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation import inference_context
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .backbones import PlainViT
from .feature_spec import FeatureSpec
from .pyramid import LiFTFeaturePyramid
from .upsamplers import FeatureUpsampler, LazyUpsampler, fit_upsampler, resize


class FeatureExtractor(Backbone):
    """A ViT's features, from any block and facet, and an upsampler such as LiFT behind them. ::

        net = TimmViT("vit_small_patch14_dinov2.lvd142m", pretrained=True)
        extractor = FeatureExtractor(net, load_lift("lift.safetensors")).eval()
        images = extractor.normalize(whole_patches(image, net.patch_size))
        features = extractor(images)["last_feat"]

    Names in the state dict are ``net.*`` and ``lift.*``, as in a detector. With a ``layer`` before the last, what comes
    behind it stays in the state dict and gets no gradients: freeze the ViT, or take the last layer.

    Attributes:
        net: the ViT.
        lift: what upsamples its map, or None.
        layer: the block, counted from 0.
        facet: what of the block.
        norm: whether the ViT's final norm is applied.
        steps: how often the map is doubled.
        pixel_mean, pixel_std: of the ViT's images, RGB, 0 to 255; None where nobody says.
        input_format: the order of the channels that the ViT takes.
    """

    def __init__(
        self,
        net: PlainViT,
        lift: FeatureUpsampler | LazyUpsampler | None = None,
        *,
        layer: int | None = None,
        facet: str = "token",
        norm: bool | None = None,
        steps: int = 1,
        out_feature: str = "last_feat",
        allow_lift: Sequence[str] = (),
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        input_format: str = "RGB",
    ) -> None:
        """
        Args:
            net: a :class:`lift_det.TimmViT` or :class:`lift_det.ViT`.
            lift: upsamples these features; ``None`` gives them as they are. A :class:`LazyUpsampler` is built for
                this ViT.
            layer: the block that the features are from, counted from 0 as in the paper and in
                ``window_block_indexes``, or from the end if negative; ``None`` is the last. Later ones are not run.
            facet: ``"token"`` is the block's output. ``"query"``, ``"key"`` and ``"value"`` are what its attention
                projects its normed input to, heads side by side, before rotary positions and before any norm of queries
                and keys, as in "Deep ViT Features as Dense Visual Descriptors" (Amir et al., arXiv 2112.05814).
            norm: put tokens of whichever block through the ViT's final norm. ``None`` does if the ViT has one. Other
                facets are never normed.
            steps: how often the map is doubled; 0 gives it as it is.
            out_feature: name of the map that :meth:`forward` gives.
            allow_lift: fields of :class:`FeatureSpec` in which a trained LiFT's features may differ from these, such
                as ``("backbone", "weights")``.
            pixel_mean, pixel_std: of the ViT's images, RGB, 0 to 255; None takes the ViT's own.
            input_format: ``"RGB"``, or ``"BGR"`` where the ViT wants that.

        Raises:
            ValueError: another kind of ViT, a layer, facet or norm that it does not have, or a LiFT that does not fit
                the width or patch size of the features.
            CheckpointError: a LiFT that was trained on other features. The ViT's weights are compared only if it was
                built with them; those that come later with ``lift.trained_on.check(self.feature_spec())``.
        """
        super().__init__()
        if not isinstance(net, PlainViT):
            raise ValueError(
                "FeatureExtractor takes a lift_det.modeling.PlainViT, such as lift_det.TimmViT and lift_det.ViT (which "
                f"is detectron2's), not a {type(net).__module__}.{type(net).__name__}."
            )
        if steps < 0:
            raise ValueError(f"steps={steps}: expected 0 or more doublings of the map.")
        self.layer, self.norm = net.resolve(layer, facet, norm)
        self.facet = facet
        self.net = net
        self.pixel_mean = net.pixel_mean if pixel_mean is None else tuple(pixel_mean)
        self.pixel_std = net.pixel_std if pixel_std is None else tuple(pixel_std)
        self.input_format = input_format
        self.allow_lift = tuple(allow_lift)
        spec = self.feature_spec(weights=False)
        self.lift = fit_upsampler(lift, spec, self, allow=allow_lift)
        self.steps = steps if lift is not None else 0

        stride = net.patch_size / 2**self.steps  # a patch of 14 is 3.5 pixels after two steps
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: spec.in_channels}
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
            ``{out_feature: (N, C, H · s, W · s)}`` with ``s = 2**steps / patch_size``.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        features = self.extract(images)
        if self.steps:
            features = self.lift.upsample(images, features, self.steps)
        return {self._out_features[0]: features}

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """``(pixel_mean, pixel_std)``.

        Raises:
            ValueError: nobody says them.
        """
        if self.pixel_mean is None or self.pixel_std is None:
            raise ValueError("This ViT does not know the statistics of its images: state pixel_mean and pixel_std.")
        return self.pixel_mean, self.pixel_std

    def normalize(self, images: Tensor) -> Tensor:
        """Images as the ViT takes them.

        Args:
            images: (N, 3, H, W), RGB, 0 to 255, of any dtype.

        Returns:
            The same, normalised, in the ViT's order of channels, dtype and device.

        Raises:
            ValueError: nobody says the statistics of the ViT's images.
        """
        parameter = next(self.net.parameters())
        images = images.to(parameter.device, torch.float32)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in self.pixel_statistics())
        images = ((images - mean) / std).to(parameter.dtype)
        return images.flip(1) if self.input_format == "BGR" else images

    @classmethod
    def of_model(cls, model: nn.Module, lift: FeatureUpsampler | None = None) -> FeatureExtractor:
        """The features that a trained model upsamples: a detector with :class:`LiFTFeaturePyramid`, or LiFT's training.

        Args:
            model: with its weights loaded.
            lift: in place of the model's own.

        Raises:
            CheckpointError: the LiFT was trained on other features, or on those of other weights.
            ValueError: another kind of model, or a LiFT for another width or patch size.
        """
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, (LiFTFeaturePyramid, FeatureExtractor)):
            raise ValueError(
                "Features can be shown of a detector with lift_det's LiFTFeaturePyramid, and of LiFT's training; this "
                f"is a {type(model).__name__} with a {type(backbone).__name__}."
            )
        which = {}
        if isinstance(backbone, FeatureExtractor):
            which = {"layer": backbone.layer, "facet": backbone.facet, "norm": backbone.norm}
        order = -1 if getattr(model, "input_format", "RGB") == "BGR" else 1
        extractor = cls(
            backbone.net,
            backbone.lift if lift is None else lift,
            **which,
            allow_lift=backbone.allow_lift,
            pixel_mean=model.pixel_mean.flatten().tolist()[::order],
            pixel_std=model.pixel_std.flatten().tolist()[::order],
            input_format=getattr(model, "input_format", "RGB"),
        )
        if lift is not None:  # with the weights, which came after the ViT was built
            lift.trained_on.check(extractor.feature_spec(), extractor.allow_lift)
        return extractor

    def feature_spec(self, *, weights: bool = True) -> FeatureSpec:
        """Describes the ViT's features, before any upsampling; see :meth:`PlainViT.feature_spec`."""
        spec = self.net.feature_spec(self.layer, self.facet, self.norm, weights=weights)
        return dataclasses.replace(spec, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std)

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
    def size_divisibility(self) -> int:
        """Images have to be padded to whole patches."""
        return self.net.patch_size


def whole_patches(image: np.ndarray, patch_size: int, steps: int = 1, size: int = 448) -> Tensor:
    """Resizes an image of any size to whole patches of about ``size``² pixels, in its own proportions.

    Each side is rounded to the nearest multiple of ``2**steps`` patches (one at least), so that proportions change by
    at most half of that on each side. A square image becomes ``size`` × ``size``; a panorama costs as much as a square.

    Args:
        image: (H, W, 3) uint8.
        patch_size: of the ViT, in pixels.
        steps: how often the map will be doubled.
        size: in pixels.

    Returns:
        (1, 3, height, width) float32, on the image's 0 to 255 scale.
    """
    unit = patch_size * 2**steps
    scale = size / math.sqrt(image.shape[0] * image.shape[1])
    target = tuple(max(1, round(side * scale / unit)) * unit for side in image.shape[:2])
    images = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return resize(images, target)


@torch.no_grad()
def upsampled_features(
    extractor: FeatureExtractor, upsamplers: Mapping[str, FeatureUpsampler], images: Tensor, steps: int = 1
) -> dict[str, Tensor]:
    """The ViT's features of images reduced ``2**steps`` times, these upsampled, and the true ones.

    Args:
        extractor: gives the features; a LiFT in it is not used. Left in the mode it was in, as the upsamplers are.
        upsamplers: names and what upsamples the map. They see the reduced image alone.
        images: (N, 3, H, W), normalised; H and W multiples of ``2**steps`` patches.
        steps: from 0.

    Returns:
        ``{"vit": (N, C, h, w), NAME: (N, C, h · 2**steps, w · 2**steps), …, "true": as NAME}``, where ``vit`` is of
        the reduced images and ``true`` of the whole ones. On the images' device.

    Raises:
        ValueError: sides that are no such multiples, or an upsampler named "vit" or "true".
    """
    taken = {"vit", "true"} & set(upsamplers)
    if taken:
        raise ValueError(f"{sorted(taken)} are the ViT's own maps: name the upsampler otherwise.")
    unit = extractor.patch_size * 2**steps
    height, width = images.shape[-2:]
    if height % unit or width % unit:
        raise ValueError(
            f"The images are {height}×{width} pixels; to be reduced {2**steps} times to whole patches of "
            f"{extractor.patch_size}, their sides have to be multiples of {unit} (whole_patches resizes to that)."
        )
    with inference_context(extractor):
        reduced = resize(images, (height // 2**steps, width // 2**steps))
        features = extractor.extract(reduced)
        maps = {"vit": features}
        for name, upsampler in upsamplers.items():
            with inference_context(upsampler):
                maps[name] = upsampler.upsample(reduced, features, steps)
        maps["true"] = extractor.extract(images)
    return maps
