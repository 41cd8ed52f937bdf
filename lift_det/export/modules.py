"""What can be exported: modules that take and give plain tensors, and know which sizes they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn
from torch.export import Dim

from lift_det.modeling import FeatureExtractor, FeatureSpec, FeatureUpsampler, LiFTFeaturePyramid, PlainViT
from lift_det.modeling.upsamplers.base import settings_to_metadata
from lift_det.version import __version__

#: largest batch and largest side, in whole cells, for which a dynamic program is traced
_MAX_BATCH, _MAX_CELLS = 4096, 4096


class ExportModule(nn.Module):
    """Images of H × W pixels in, maps out.

    Attributes:
        input_names, output_names: of the tensors, in order.
        divisibility: H and W are multiples of this many pixels.
        min_size: the smallest side, in pixels, of a file for any size. A dimension of 1 is traced as no other is.
        max_size: the largest side, in pixels; None where there is no limit.
        fixed_only: why the model can be exported for one size alone, or "".
        facts: about the model, for the file's metadata.
    """

    input_names: tuple[str, ...] = ("images",)
    output_names: tuple[str, ...]
    divisibility: int
    min_size: int
    max_size: int | None = None
    fixed_only: str = ""
    facts: Mapping[str, str]

    def inputs(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random inputs of that size, for tracing and for comparing."""
        return (torch.rand(batch, 3, *size, generator=generator) * 255,)

    def dynamic_shapes(self, size: tuple[int, int] | None) -> tuple[dict[int, Dim], ...]:
        """For :func:`torch.export.export`: the batch is free, and so is the size where ``size`` is None."""
        batch, height, width = self._dims(size)
        return ({0: batch, **self._sides(height, width, self.divisibility)},)

    def usual_size(self) -> tuple[int, int]:
        """A size to export and compare with where none is named: the one that the model pads to, or about 224."""
        side = self.max_size or max(self.min_size, math.ceil(224 / self.divisibility) * self.divisibility)
        return side, side

    def check_size(self, size: tuple[int, int], dynamic: bool) -> None:
        """
        Raises:
            ValueError: a size that the model, or a file for any size, does not take.
        """
        smallest = self.min_size if dynamic else self.divisibility
        largest = self.max_size or math.inf
        if any(side % self.divisibility or not smallest <= side <= largest for side in size):
            limit = f" to {self.max_size}" if self.max_size else ""
            raise ValueError(
                f"{size[0]}×{size[1]} pixels: the sides have to be multiples of {self.divisibility} from "
                f"{smallest}{limit}."
            )

    def describe(self, size: tuple[int, int] | None) -> dict[str, str]:
        """The metadata of a file: the facts, and the size (None: any)."""
        if size is None:
            limit = f" to {self.max_size}" if self.max_size else ""
            said = f"any; multiples of {self.divisibility} pixels from {self.min_size}{limit}"
        else:
            said = f"{size[0]} x {size[1]} pixels"
        return {"lift_det_version": __version__, **self.facts, "size": said}

    def _dims(self, size: tuple[int, int] | None) -> tuple[Dim, Dim | None, Dim | None]:
        batch = Dim("batch", min=1, max=_MAX_BATCH)
        if size is not None:
            return batch, None, None
        least = math.ceil(self.min_size / self.divisibility)
        most = self.max_size // self.divisibility if self.max_size else _MAX_CELLS
        return batch, Dim("h", min=least, max=most), Dim("w", min=least, max=most)

    @staticmethod
    def _sides(height: Dim | None, width: Dim | None, factor: int) -> dict[int, Dim]:
        return {} if height is None else {2: factor * height, 3: factor * width}


class LiFTModule(ExportModule):
    """A LiFT, or another upsampler for one ViT, alone.

    Images (N, 3, H, W), normalised, and features (N, C, h, w) → (N, C, 2h, 2w).
    """

    input_names = ("images", "features")
    output_names = ("lifted",)

    def __init__(self, lift: FeatureUpsampler) -> None:
        """
        Args:
            lift: in evaluation mode.

        Raises:
            ValueError: an upsampler that has no ``in_channels`` or ``patch_size``.
        """
        super().__init__()
        if lift.in_channels is None or lift.patch_size is None:
            raise ValueError(
                f"A {type(lift).__name__} does not say its in_channels and patch_size, which are the sizes of its "
                "inputs: export it with its ViT (lift_det.export.FeaturesModule, lift-det export features)."
            )
        self.lift = lift
        self.divisibility = lift.patch_size
        self.min_size = 2 * lift.patch_size
        self.facts = {
            "kind": "lift",
            "inputs": "images: (N, 3, H, W) float32, normalised as the ViT saw them; features: (N, C, H/patch_size, "
            "W/patch_size) float32",
            "outputs": "lifted: (N, C, 2 H/patch_size, 2 W/patch_size) float32",
            "channels": str(lift.in_channels),
            "patch_size": str(lift.patch_size),
            "steps": "1",
            **_lift_facts(lift),
        }

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """As :meth:`FeatureUpsampler.forward`."""
        return self.lift(images, features)

    def inputs(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """As :meth:`ExportModule.inputs`."""
        grid = (size[0] // self.lift.patch_size, size[1] // self.lift.patch_size)
        return (
            torch.randn(batch, 3, *size, generator=generator),
            torch.randn(batch, self.lift.in_channels, *grid, generator=generator),
        )

    def dynamic_shapes(self, size: tuple[int, int] | None) -> tuple[dict[int, Dim], ...]:
        """As :meth:`ExportModule.dynamic_shapes`."""
        batch, height, width = self._dims(size)
        return tuple({0: batch, **self._sides(height, width, factor)} for factor in (self.divisibility, 1))


class FeaturesModule(ExportModule):
    """A ViT and its upsampler: (N, 3, H, W) RGB images, 0 to 255 → (N, C, h, w)."""

    output_names = ("features",)

    def __init__(self, extractor: FeatureExtractor) -> None:
        """
        Args:
            extractor: in evaluation mode.

        Raises:
            ValueError: the statistics of the ViT's images are unknown.
        """
        super().__init__()
        spec = extractor.feature_spec(weights=False)
        self.extractor = extractor
        self.normalize = _Normalize(*extractor.pixel_statistics(), extractor.input_format)
        self.divisibility = spec.patch_size
        self.min_size = _smallest(extractor.net, spec.patch_size, self.divisibility)
        self.fixed_only = extractor.net.fixed_size_reason
        (shape,) = extractor.output_shape().values()
        said = spec.to_metadata()
        names = ("patch_size", "backbone", "layer", "facet", "final_norm", "pixel_mean", "pixel_std")
        self.facts = {
            "kind": "features",
            "inputs": "images: (N, 3, H, W) float32, RGB, 0 to 255; normalised inside",
            "outputs": f"features: (N, {shape.channels}, H/{shape.stride}, W/{shape.stride}) float32",
            "channels": str(shape.channels),
            "steps": str(extractor.steps),
            **{name: said[name] for name in names},
            **_lift_facts(extractor.lift),
        }

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), 0 to 255 → (N, C, h, w)."""
        (features,) = self.extractor(self.normalize(images)).values()
        return features


class BackboneModule(ExportModule):
    """A detector's ViT, LiFT and pyramid: (N, 3, H, W) images, 0 to 255 → ``{"p2": (N, C, H/4, W/4), …}``."""

    def __init__(
        self,
        backbone: LiFTFeaturePyramid,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ) -> None:
        """
        Args:
            backbone: in evaluation mode.
            pixel_mean: the detector's, in the order of ``input_format``, 0 to 255.
            pixel_std: as pixel_mean.
            input_format: the detector's, "RGB" or "BGR". The exported file takes RGB in both cases.

        Raises:
            ValueError: another format.
        """
        super().__init__()
        self.backbone = backbone
        order = -1 if input_format == "BGR" else 1
        mean, std = tuple(pixel_mean)[::order], tuple(pixel_std)[::order]
        self.normalize = _Normalize(mean, std, input_format)
        net = backbone.net
        pad_to = backbone.padding_constraints["size_divisibility"]
        self.divisibility = backbone.size_divisibility
        # a square_pad is what the detector pads every image to
        self.max_size = pad_to if pad_to != self.divisibility else None
        shapes = backbone.output_shape()
        patch_pixels = round(net.patch_size / backbone.input_scale)
        self.min_size = _smallest(net, patch_pixels, self.divisibility, max(s.stride for s in shapes.values()))
        self.fixed_only = net.fixed_size_reason
        self.output_names = tuple(shapes)
        self.facts = {
            "kind": "backbone",
            "inputs": "images: (N, 3, H, W) float32, RGB, 0 to 255; normalised inside. Pad at the right and the bottom "
            "with pixel_mean, which the normalisation makes 0, as the detector pads",
            "outputs": ", ".join(f"{k}: (N, {s.channels}, H/{s.stride}, W/{s.stride})" for k, s in shapes.items()),
            "channels": str(next(iter(shapes.values())).channels),
            "patch_size": str(net.patch_size),
            "backbone": net.description,
            "steps": str(backbone.steps),
            "input_scale": f"{backbone.input_scale:g}",
            "square_pad": str(self.max_size or 0),
            **FeatureSpec(pixel_mean=mean, pixel_std=std).to_metadata(),
            **_lift_facts(backbone.lift),
        }

    @classmethod
    def of_detector(cls, detector: nn.Module) -> BackboneModule:
        """Of a detector, such as detectron2's or lift_det's GeneralizedRCNN, with its normalisation.

        Raises:
            ValueError: its backbone is no :class:`LiFTFeaturePyramid` over a :class:`PlainViT`.
        """
        backbone = getattr(detector, "backbone", None)
        if not isinstance(backbone, LiFTFeaturePyramid) or not isinstance(backbone.net, PlainViT):
            what = type(getattr(backbone, "net", backbone)).__name__
            raise ValueError(
                "A detector's backbone can be exported if it is a lift_det.LiFTFeaturePyramid over a lift_det.ViT, a "
                f"lift_det.TimmViT or another lift_det.modeling.PlainViT; this one is a {what}."
            )
        mean, std = (x.flatten().tolist() for x in (detector.pixel_mean, detector.pixel_std))
        return cls(backbone, mean, std, detector.input_format or "BGR")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), RGB, 0 to 255, padded → ``{"p2": …}``, from fine to coarse."""
        return self.backbone(self.normalize(images))


class DetectorModule(nn.Module):
    """A whole detector for one image of one size: (1, 3, H, W), RGB, 0 to 255 → boxes, scores, classes and masks.

    It gives what the detector does before its masks are pasted: boxes (R, 4) as x0, y0, x1, y1 in pixels of the image,
    scores (R,), classes (R,) and, of Mask R-CNN, masks (R, 1, 28, 28): probabilities on a grid over each box.
    """

    input_names = ("images",)

    def __init__(self, detector: nn.Module) -> None:
        """
        Args:
            detector: a GeneralizedRCNN of lift_det's or detectron2's, in evaluation mode.

        Raises:
            ValueError: another model, or one with an input format other than RGB and BGR.
        """
        super().__init__()
        if not isinstance(detector, GeneralizedRCNN):
            raise ValueError(f"A GeneralizedRCNN can be exported as a whole, not a {type(detector).__name__}.")
        self.detector = detector
        self.swap = detector.input_format != "RGB"
        self.output_names = ("boxes", "scores", "classes", *(["masks"] if detector.roi_heads.mask_on else []))
        self.facts = {
            **BackboneModule.of_detector(detector).facts,
            "kind": "detector",
            "inputs": "images: (1, 3, H, W) float32, RGB, 0 to 255; normalised and padded inside",
            "outputs": "boxes: (R, 4) x0 y0 x1 y1 in pixels; scores: (R,); classes: (R,)"
            + ("; masks: (R, 1, 28, 28) probabilities over each box" if detector.roi_heads.mask_on else ""),
            "classes": str(detector.roi_heads.num_classes),
        }

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, H, W) → boxes (R, 4), scores (R,), classes (R,), and masks (R, 1, 28, 28) if there are."""
        image = images[0].flip(0) if self.swap else images[0]
        (found,) = self.detector.inference([{"image": image}], do_postprocess=False)
        outputs = (found.pred_boxes.tensor, found.scores, found.pred_classes)
        return (*outputs, found.pred_masks) if "masks" in self.output_names else outputs

    def usual_size(self) -> tuple[int, int]:
        """The square that the detector pads to.

        Raises:
            ValueError: it pads to none.
        """
        side = int(self.facts["square_pad"])
        if not side:
            raise ValueError("This detector pads to no square: name the one size that the file is to take.")
        return side, side

    def describe(self, size: tuple[int, int]) -> dict[str, str]:
        """As :meth:`ExportModule.describe`."""
        return {"lift_det_version": __version__, **self.facts, "size": f"{size[0]} x {size[1]} pixels"}


class _Normalize(nn.Module):
    """RGB images, 0 to 255, as a model takes them. The statistics are no part of the state dict."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], input_format: str) -> None:
        """
        Args:
            mean, std: RGB, 0 to 255.
            input_format: the order of the channels that the model takes.

        Raises:
            ValueError: neither ``"RGB"`` nor ``"BGR"``.
        """
        super().__init__()
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"input_format: expected 'RGB' or 'BGR', got '{input_format}'.")
        self.swap = input_format == "BGR"
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = (images - self.mean) / self.std
        return images.flip(1) if self.swap else images


def _smallest(net: PlainViT, patch_pixels: int, divisibility: int, stride: int = 1) -> int:
    """The smallest side that leaves two cells of the coarsest map, of ``stride`` pixels, and two windows."""
    pixels = max(2 * patch_pixels, (net.largest_window + 1) * patch_pixels, stride + 1)
    return math.ceil(pixels / divisibility) * divisibility


def _lift_facts(lift: FeatureUpsampler | None) -> dict[str, str]:
    """What is known of the upsampler, each under ``lift.NAME``."""
    if lift is None:
        return {"upsampler": "none"}
    said = {**lift.feature_spec.to_metadata(), **lift.metadata, **settings_to_metadata(lift)}
    return {"upsampler": type(lift).__name__, **{f"lift.{name}": value for name, value in said.items()}}
