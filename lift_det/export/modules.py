"""Modules that can be exported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lift_det.modeling import FeatureExtractor, FeatureSpec, FeatureUpsampler, LiFTFeaturePyramid, PlainViT
from lift_det.modeling.upsamplers.base import settings_to_metadata
from lift_det.version import __version__


class ExportModule(nn.Module):
    """Base class of modules with images of H × W pixels as input.

    Attributes:
        input_names, output_names: names of the tensors, in order.
        input_strides: for each input, pixels of the image per cell.
        divisibility: H and W are multiples of this many pixels.
        min_size: smallest side of images, in pixels, if the size is dynamic.
        square_pad: side in pixels to which the model pads every image, or 0.
        fixed_size_reason: why the model can only be exported for one size; empty if the size can be dynamic.
        metadata: description of the model for the file.
    """

    input_names: tuple[str, ...] = ("images",)
    input_strides: tuple[int, ...] = (1,)
    output_names: tuple[str, ...]
    divisibility: int
    min_size: int
    square_pad: int = 0
    fixed_size_reason: str = ""
    metadata: dict[str, str]

    def inputs(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns random inputs with images of a size (H, W)."""
        return (torch.rand(batch, 3, *size, generator=generator) * 255,)

    def default_size(self) -> tuple[int, int]:
        """Returns the size (H, W) that the model pads to, or about 224 pixels."""
        side = self.square_pad or max(self.min_size, math.ceil(224 / self.divisibility) * self.divisibility)
        return side, side

    def describe(self, size: tuple[int, int] | None) -> dict[str, str]:
        """Returns the metadata of a file for one size (H, W), or for any size (None)."""
        text = f"any; multiples of {self.divisibility} pixels from {self.min_size}"
        if size is not None:
            text = f"{size[0]} x {size[1]} pixels"
        return {"lift_det_version": __version__, **self.metadata, "size": text}


class LiFTModule(ExportModule):
    """A LiFT: normalized images (N, 3, H, W) and features (N, C, h, w) → (N, C, 2h, 2w).

    Args:
        lift: an upsampler for one ViT, in evaluation mode.

    Raises:
        ValueError: the upsampler has no ``in_channels`` or ``patch_size``.
    """

    input_names = ("images", "features")
    output_names = ("lifted",)

    def __init__(self, lift: FeatureUpsampler) -> None:
        super().__init__()
        if lift.in_channels is None or lift.patch_size is None:
            raise ValueError(
                f"{type(lift).__name__} has no in_channels or no patch_size, so the sizes of its inputs are unknown: "
                "export it with a ViT (lift_det.export.FeaturesModule, `lift-det export features`)."
            )
        self.lift = lift
        self.divisibility, self.min_size = lift.patch_size, 2 * lift.patch_size
        self.input_strides = (1, lift.patch_size)
        self.metadata = {
            "kind": "lift",
            "inputs": "images: (N, 3, H, W) float32, normalized as for the ViT; "
            "features: (N, C, H/patch_size, W/patch_size) float32",
            "outputs": "lifted: (N, C, 2 H/patch_size, 2 W/patch_size) float32",
            "channels": str(lift.in_channels),
            "patch_size": str(lift.patch_size),
            **_upsampler_metadata(lift),
        }

    def inputs(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns random images and features; see :meth:`ExportModule.inputs`."""
        grid = [side // self.divisibility for side in size]
        shapes = (batch, 3, *size), (batch, self.lift.in_channels, *grid)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """See :meth:`lift_det.modeling.FeatureUpsampler.forward`."""
        return self.lift(images, features)


class FeaturesModule(ExportModule):
    """A ViT and its upsampler: RGB images (N, 3, H, W), 0 to 255 → features (N, C, h, w).

    Args:
        extractor: in evaluation mode.

    Raises:
        ValueError: the extractor has no pixel statistics.
    """

    output_names = ("features",)

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.normalize = _Normalize(*extractor.pixel_statistics(), extractor.input_format)
        self.divisibility = extractor.patch_size
        self.min_size = _min_size(extractor.net, extractor.patch_size, self.divisibility)
        (shape,) = extractor.output_shape().values()
        self.metadata = {
            "kind": "features",
            "inputs": "images: (N, 3, H, W) float32, RGB, 0 to 255; normalized inside",
            "outputs": f"features: (N, {shape.channels}, H/{shape.stride}, W/{shape.stride}) float32",
            "channels": str(shape.channels),
            "steps": str(extractor.steps),
            **extractor.feature_spec(weights=False).to_metadata(),
            **_upsampler_metadata(extractor.lift),
        }

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, 0 to 255 → (N, C, h, w)."""
        (features,) = self.extractor(self.normalize(images)).values()
        return features


class BackboneModule(ExportModule):
    """A ViT, LiFT and pyramid: RGB images (N, 3, H, W), 0 to 255 → ``{"p2": (N, C, H/4, W/4), …}``.

    Args:
        backbone: in evaluation mode.
        pixel_mean, pixel_std: of the detector, 0 to 255, in the channel order of ``input_format``.
        input_format: ``"RGB"`` or ``"BGR"``, of the detector. The input of the module is RGB in both cases.

    Raises:
        ValueError: unknown ``input_format``.
    """

    def __init__(
        self,
        backbone: LiFTFeaturePyramid,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        order = -1 if input_format == "BGR" else 1
        mean, std = tuple(pixel_mean)[::order], tuple(pixel_std)[::order]
        self.normalize = _Normalize(mean, std, input_format)
        net, shapes = backbone.net, backbone.output_shape()
        self.output_names = tuple(shapes)
        self.divisibility = backbone.size_divisibility
        patch_pixels = round(net.patch_size / backbone.input_scale)
        coarsest = max(shape.stride for shape in shapes.values())
        self.min_size = _min_size(net, patch_pixels, self.divisibility, coarsest)
        pad_to = backbone.padding_constraints["size_divisibility"]
        if pad_to != self.divisibility:
            self.square_pad = pad_to
            self.fixed_size_reason = f"model.backbone.square_pad={pad_to} pads every image to one size"
        self.metadata = {
            "kind": "backbone",
            "inputs": "images: (N, 3, H, W) float32, RGB, 0 to 255; normalized inside. Pad them with pixel_mean at the "
            "right and the bottom",
            "outputs": ", ".join(f"{k}: (N, {s.channels}, H/{s.stride}, W/{s.stride})" for k, s in shapes.items()),
            "patch_size": str(net.patch_size),
            "backbone": net.description,
            "steps": str(backbone.steps),
            "input_scale": f"{backbone.input_scale:g}",
            "square_pad": str(self.square_pad),
            **FeatureSpec(pixel_mean=mean, pixel_std=std).to_metadata(),
            **_upsampler_metadata(backbone.lift),
        }

    @classmethod
    def of_detector(cls, detector: nn.Module) -> BackboneModule:
        """Creates the module from a detector, such as a GeneralizedRCNN of detectron2 or lift_det.

        Raises:
            ValueError: the backbone is not a :class:`LiFTFeaturePyramid` with a :class:`PlainViT`.
        """
        backbone = getattr(detector, "backbone", None)
        if not isinstance(backbone, LiFTFeaturePyramid) or not isinstance(backbone.net, PlainViT):
            found = detector if backbone is None else getattr(backbone, "net", backbone)
            raise ValueError(
                "Expected a detector whose backbone is a lift_det.LiFTFeaturePyramid with a lift_det.ViT, "
                f"lift_det.TimmViT or another PlainViT, got {type(found).__name__}."
            )
        mean, std = (x.flatten().tolist() for x in (detector.pixel_mean, detector.pixel_std))
        return cls(backbone, mean, std, detector.input_format or "BGR")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), RGB, 0 to 255, padded → levels from fine to coarse."""
        return self.backbone(self.normalize(images))


class _Normalize(nn.Module):
    """Normalizes RGB images, 0 to 255, and converts them to ``input_format``. The state dict is empty."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], input_format: str) -> None:
        super().__init__()
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"input_format: expected 'RGB' or 'BGR', got '{input_format}'.")
        self.swap = input_format == "BGR"
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = (images - self.mean) / self.std
        return images.flip(1) if self.swap else images


def _min_size(net: PlainViT, patch_pixels: int, divisibility: int, stride: int = 1) -> int:
    """Returns the smallest side with two patches, two cells of the coarsest map, and more than one window.

    With a single one, torch.export would specialize on the size 1.
    """
    pixels = max(2 * patch_pixels, (net.largest_window + 1) * patch_pixels, stride + 1)
    return math.ceil(pixels / divisibility) * divisibility


def _upsampler_metadata(lift: FeatureUpsampler | None) -> dict[str, str]:
    if lift is None:
        return {"upsampler": "none"}
    values = {**lift.feature_spec.to_metadata(), **lift.metadata, **settings_to_metadata(lift)}
    return {"upsampler": type(lift).__name__, **{f"lift.{name}": value for name, value in values.items()}}
