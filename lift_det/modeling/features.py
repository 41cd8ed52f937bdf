"""Features of a ViT, with or without upsampling."""

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
    """Computes a ViT's features from any block and facet, and upsamples them. ::

        net = TimmViT("vit_small_patch14_dinov2.lvd142m", pretrained=True)
        extractor = FeatureExtractor(net, load_lift("lift.safetensors")).eval()
        images = extractor.normalize(whole_patches(image, net.patch_size))
        features = extractor(images)["last_feat"]

    State-dict names are ``net.*`` and ``lift.*``, as in a detector. Blocks after ``layer`` get no gradients.
    """

    def __init__(
        self,
        net: PlainViT,
        lift: FeatureUpsampler | LazyUpsampler | None = None,
        *,
        layer: int | None = None,
        facet: str = "token",
        final_norm: bool | None = None,
        steps: int = 1,
        out_feature: str = "last_feat",
        ignore_mismatch: Sequence[str] = (),
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        input_format: str = "RGB",
    ) -> None:
        """
        Args:
            net: a :class:`lift_det.TimmViT` or :class:`lift_det.ViT`.
            lift: upsampler of the features. A :class:`LazyUpsampler` is built for this ViT. Default: no upsampling.
            layer, facet, final_norm: see :meth:`PlainViT.feature_map`.
            steps: number of times that the map is doubled.
            out_feature: name of the map in the output.
            ignore_mismatch: fields of :class:`FeatureSpec`, such as ``("backbone", "weights")``, in which the features
                may differ from those that ``lift`` was trained on.
            pixel_mean, pixel_std: of the ViT's images, RGB, 0 to 255. Default: the ViT's.
            input_format: order of the channels that the ViT expects, ``"RGB"`` or ``"BGR"``.

        Raises:
            ValueError: the ViT is not a PlainViT, has no such layer, facet or norm, or has another width or patch size
                than ``lift``.
            CheckpointError: ``lift`` was trained on other features. The ViT's weights are compared if it was built with
                them; compare weights that are loaded later with ``lift.trained_on.check(self.feature_spec())``.
        """
        super().__init__()
        if not isinstance(net, PlainViT):
            raise ValueError(
                "FeatureExtractor takes a lift_det.modeling.PlainViT, such as lift_det.TimmViT or lift_det.ViT, not a "
                f"{type(net).__module__}.{type(net).__name__}."
            )
        if steps < 0:
            raise ValueError(f"steps={steps}: expected 0 or more doublings.")
        self.layer, self.final_norm = net.resolve(layer, facet, final_norm)
        self.facet = facet
        self.net = net
        self.patch_size, self.weights_given = net.patch_size, net.weights_given  # as for a PlainViT
        self.pixel_mean = net.pixel_mean if pixel_mean is None else tuple(pixel_mean)
        self.pixel_std = net.pixel_std if pixel_std is None else tuple(pixel_std)
        self.input_format = input_format
        self.ignore_mismatch = tuple(ignore_mismatch)
        spec = self.feature_spec(weights=False)
        self.lift = fit_upsampler(lift, spec, self, ignore_mismatch=ignore_mismatch)
        self.steps = steps if lift is not None else 0

        stride = net.patch_size / 2**self.steps  # 3.5 for patches of 14 pixels and two steps
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: spec.in_channels}
        self._out_feature_strides = {out_feature: int(stride) if stride.is_integer() else stride}

    def extract(self, images: Tensor) -> Tensor:
        """Computes the ViT's features without upsampling; see :meth:`PlainViT.feature_map`."""
        return self.net.feature_map(images, self.layer, self.facet, self.final_norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the upsampled features of normalised images.

        Args:
            images: (N, 3, H, W), with H and W multiples of the patch size.

        Returns:
            ``{out_feature: (N, C, H · s, W · s)}`` with ``s = 2**steps / patch_size``.
        """
        features = self.extract(images)
        if self.steps:
            features = self.lift.upsample(images, features, self.steps)
        return {self._out_features[0]: features}

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns ``(pixel_mean, pixel_std)``; raises ValueError if they are unknown."""
        if self.pixel_mean is None or self.pixel_std is None:
            raise ValueError("The statistics of this ViT's images are unknown: state pixel_mean and pixel_std.")
        return self.pixel_mean, self.pixel_std

    def normalize(self, images: Tensor) -> Tensor:
        """Normalises images (N, 3, H, W), RGB, 0 to 255, and converts them to the ViT's channels, dtype and device."""
        parameter = next(self.net.parameters())
        images = images.to(parameter.device, torch.float32)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in self.pixel_statistics())
        images = ((images - mean) / std).to(parameter.dtype)
        return images.flip(1) if self.input_format == "BGR" else images

    @classmethod
    def of_model(cls, model: nn.Module, lift: FeatureUpsampler | None = None) -> FeatureExtractor:
        """Builds the extractor of the features that a trained model upsamples.

        Args:
            model: a detector with :class:`LiFTFeaturePyramid`, or a :class:`LiFTPretraining`, with its weights.
            lift: an upsampler that replaces the model's.

        Raises:
            CheckpointError: ``lift`` was trained on other features or weights.
            ValueError: the model is of another kind, or its ViT has another width or patch size than ``lift``.
        """
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, (LiFTFeaturePyramid, FeatureExtractor)):
            raise ValueError(
                "Expected a detector with lift_det's LiFTFeaturePyramid, or a LiFTPretraining, got a "
                f"{type(model).__name__} with a {type(backbone).__name__}."
            )
        features = {}
        if isinstance(backbone, FeatureExtractor):
            features = {"layer": backbone.layer, "facet": backbone.facet, "final_norm": backbone.final_norm}
        order = -1 if getattr(model, "input_format", "RGB") == "BGR" else 1
        extractor = cls(
            backbone.net,
            backbone.lift if lift is None else lift,
            **features,
            ignore_mismatch=backbone.ignore_mismatch,
            pixel_mean=model.pixel_mean.flatten().tolist()[::order],
            pixel_std=model.pixel_std.flatten().tolist()[::order],
            input_format=getattr(model, "input_format", "RGB"),
        )
        if lift is not None:  # including the weights, which were loaded after the ViT was built
            lift.trained_on.check(extractor.feature_spec(), extractor.ignore_mismatch)
        return extractor

    def feature_spec(self, *, weights: bool = True) -> FeatureSpec:
        """Describes the features before upsampling; see :meth:`PlainViT.feature_spec`."""
        spec = self.net.feature_spec(self.layer, self.facet, self.final_norm, weights=weights)
        return dataclasses.replace(spec, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std)

    @property
    def size_divisibility(self) -> int:
        """The patch size: height and width of the images have to be multiples of it."""
        return self.net.patch_size


def whole_patches(image: np.ndarray, patch_size: int, steps: int = 1, size: int = 448) -> Tensor:
    """Resizes an image to a whole number of patches, keeping its aspect ratio.

    Args:
        image: (H, W, 3) uint8.
        patch_size: of the ViT, in pixels.
        steps: number of doublings of the map. Each side is rounded to a multiple of ``2**steps`` patches.
        size: the result has about ``size * size`` pixels.

    Returns:
        (1, 3, height, width) float32, 0 to 255.
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
    """Upsamples the features of reduced images, for comparison with the features of the full images.

    Args:
        extractor: computes the features. Its own upsampler is not used.
        upsamplers: by name. They get the reduced images.
        images: (N, 3, H, W), normalised, with H and W multiples of ``2**steps`` patches.
        steps: number of doublings; images are reduced by ``2**steps``.

    Returns:
        ``"vit"``: the features of the reduced images, (N, C, h, w); each upsampler's name: its result, (N, C, h ·
        2**steps, w · 2**steps); ``"true"``: the features of the full images, of the same shape.

    Raises:
        ValueError: H or W is not such a multiple, or an upsampler is named "vit" or "true".
    """
    taken = {"vit", "true"} & set(upsamplers)
    if taken:
        raise ValueError(f"{sorted(taken)} are reserved for the ViT's own maps: rename the upsampler.")
    unit = extractor.patch_size * 2**steps
    height, width = images.shape[-2:]
    if height % unit or width % unit:
        raise ValueError(
            f"Images of {height}×{width} pixels: both sides have to be multiples of {unit} ({2**steps} patches of "
            f"{extractor.patch_size} pixels); whole_patches resizes to that."
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
