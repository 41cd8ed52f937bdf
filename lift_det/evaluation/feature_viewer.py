"""Features of image arrays as they come: what `lift-det features` asks for each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lift_det.modeling.agreement import check_lift
from lift_det.modeling.features import FeatureExtractor
from lift_det.modeling.lift import BilinearUpsample, FeatureUpsampler
from lift_det.modeling.pyramid import LiFTFeaturePyramid

from .feature_maps import upsampled_features, whole_patches


class FeatureViewer:
    """Gives the maps of :func:`upsampled_features` for an image array: it resizes, normalises and orders the channels.

    ::

        net = TimmViT("vit_small_patch14_dinov2.lvd142m", pretrained=True)
        viewer = FeatureViewer(FeatureExtractor(net, load_lift("lift.safetensors")))
        seen, maps = viewer(image)
        draw_feature_grid(image, maps, "features.png", point=(320, 180))
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        input_format: str = "RGB",
    ) -> None:
        """
        Args:
            extractor: gives the features, on the device that it is on; with its LiFT, if it has one, beside bilinear
                upsampling.
            pixel_mean: of the images that the ViT was trained on, 0 to 255, in the order of ``input_format``; None
                takes the ViT's own.
            pixel_std: likewise.
            input_format: ``"RGB"``, or ``"BGR"`` where the ViT wants that.

        Raises:
            ValueError: the ViT does not know its images' statistics.
        """
        pixel_mean = extractor.pixel_mean if pixel_mean is None else pixel_mean
        pixel_std = extractor.pixel_std if pixel_std is None else pixel_std
        if pixel_mean is None or pixel_std is None:
            raise ValueError("This ViT does not know the statistics of its images: state pixel_mean and pixel_std.")
        self.extractor = extractor
        self._device = next(extractor.net.parameters()).device
        self._mean, self._std = (
            torch.tensor(list(values), device=self._device).view(3, 1, 1) for values in (pixel_mean, pixel_std)
        )
        self._reverse = input_format == "BGR"
        self._upsamplers: dict[str, FeatureUpsampler] = {"bilinear": BilinearUpsample()}
        if extractor.lift is not None and not isinstance(extractor.lift, BilinearUpsample):
            self._upsamplers["lift"] = extractor.lift.to(self._device)

    @classmethod
    def of_model(cls, model: nn.Module, lift: FeatureUpsampler | None = None) -> FeatureViewer:
        """The features that a trained model lifts: a detector with :class:`LiFTFeaturePyramid`, or LiFT's training.

        Args:
            model: with its weights loaded.
            lift: in place of the model's own.

        Raises:
            CheckpointError: the LiFT was trained on other features, or on those of other weights.
            ValueError: another kind of model, or a LiFT for another width or patch size.
        """
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, LiFTFeaturePyramid):
            extractor = FeatureExtractor(
                backbone.net, backbone.lift if lift is None else lift, allow_lift=backbone.allow_lift
            )
        elif isinstance(backbone, FeatureExtractor):
            extractor = FeatureExtractor(
                backbone.net,
                backbone.lift if lift is None else lift,
                layer=backbone.layer,
                facet=backbone.facet,
                norm=backbone.norm,
            )
        else:
            raise ValueError(
                "Features are shown of a detector with lift_det's LiFTFeaturePyramid, or of LiFT's training; this is a "
                f"{type(model).__name__} with a {type(backbone).__name__}."
            )
        if lift is not None:  # with the weights, which came after the ViT was built
            check_lift(lift, extractor.settings(), allow=extractor.allow_lift)
        statistics = (values.flatten().tolist() for values in (model.pixel_mean, model.pixel_std))
        return cls(extractor, *statistics, input_format=getattr(model, "input_format", "RGB"))

    @torch.no_grad()
    def __call__(self, image: np.ndarray, steps: int = 1, size: int = 448) -> tuple[np.ndarray, dict[str, Tensor]]:
        """
        Args:
            image: (H, W, 3) uint8 in RGB, of any size.
            steps: how often the map is doubled.
            size: see :func:`whole_patches`.

        Returns:
            The image as the ViT sees it whole, (h, w, 3) uint8 in RGB; and the maps ``"vit"``, ``"bilinear"``,
            ``"lift"`` where there is one, and ``"true"``, each (C, ?, ?) in float32 on the CPU.
        """
        images = whole_patches(image, self.extractor.patch_size, steps, size)
        seen = images[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype(np.uint8)
        if self._reverse:
            images = images.flip(1)
        images = (images.to(self._device) - self._mean) / self._std
        maps = upsampled_features(self.extractor, self._upsamplers, images, steps)
        return seen, {name: map_[0].float().cpu() for name, map_ in maps.items()}
