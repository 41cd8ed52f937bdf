"""Base class and registry of feature upsamplers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from lift_det.checkpoint import METADATA_KEY

from ..feature_spec import FeatureSpec

#: name -> class, filled by :func:`register_upsampler`
UPSAMPLERS: dict[str, type[FeatureUpsampler]] = {}

_Class = TypeVar("_Class", bound="type[FeatureUpsampler]")
# Fields of FeatureSpec that a checkpoint does not store, because it has the ViT itself.
_NOT_IN_CHECKPOINTS = ("weights", "pixel_mean", "pixel_std")


def register_upsampler(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that registers an upsampler for :func:`build_upsampler`; raises ValueError for a used name."""

    def register(upsampler: _Class) -> _Class:
        if name in UPSAMPLERS:
            raise ValueError(f"The upsampler '{name}' is registered already: {UPSAMPLERS[name].__qualname__}.")
        UPSAMPLERS[name] = upsampler
        upsampler.name = name
        return upsampler

    return register


class FeatureUpsampler(nn.Module, ABC):
    """Base class of modules that upsample a ViT's feature map, guided by the image.

    Subclasses implement :meth:`forward`. To be saved and loaded by name, they also implement :meth:`settings` and are
    registered with :func:`register_upsampler`.
    """

    name: ClassVar[str] = ""  # in the registry
    in_channels: int | None = None  # C of the features; None accepts any
    patch_size: int | None = None  # of the ViT, in pixels; None accepts any
    #: arguments with a default that a file has to state nevertheless, because its tensors fit any value
    stated_by_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, str] = {}  # of the file that the weights were loaded from
        self.feature_spec = FeatureSpec()  # of the features that it is given
        self.trained = False  # whether it was loaded from a file

    @abstractmethod
    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """Upsamples a feature map.

        Args:
            images: (N, 3, H, W), normalised as for the ViT, with the aspect ratio of the map and any resolution. The
                upsampler resizes them to the resolution that it needs.
            features: (N, C, h, w), the ViT's map.
            output_size: (height, width) of the result. Default: (2h, 2w).

        Returns:
            (N, C, *output_size)
        """

    def step(self, images: Tensor, features: Tensor) -> Tensor:
        """Doubles a map once, (N, C, h, w) → (N, C, 2h, 2w), without the final processing of :meth:`forward`."""
        return self(images, features)

    def upsample(self, images: Tensor, features: Tensor, steps: int) -> Tensor:
        """Upsamples a map by 2**steps. Returns ``features`` for 0 steps."""
        if steps == 0:
            return features
        return self(images, features, scaled_size(features, steps))

    def settings(self) -> dict[str, Any]:
        """Returns the constructor's arguments, which are saved with the weights and have to be JSON types."""
        return {}

    @property
    def trained_on(self) -> FeatureSpec:
        """The features that the upsampler was trained on, as far as its file states them."""
        return FeatureSpec.from_metadata(self.metadata)

    def use_features(self, spec: FeatureSpec, ignore_mismatch: Sequence[str] = ()) -> None:
        """Sets the features that the upsampler will be given, and which its model's checkpoints state.

        Args:
            spec: the features.
            ignore_mismatch: fields in which they may differ from the features that the upsampler was trained on.

        Raises:
            ValueError: the features have another width or patch size than the upsampler.
            CheckpointError: the upsampler was trained on other features.
        """
        sizes = [(self.in_channels, spec.in_channels), (self.patch_size, spec.patch_size)]
        if any(None not in pair and pair[0] != pair[1] for pair in sizes):
            raise ValueError(
                f"{type(self).__name__} is for {self.in_channels} channels and patches of {self.patch_size} pixels, "
                f"the ViT has {spec.in_channels} and {spec.patch_size}: leave in_channels and patch_size out of the "
                "config, or use an upsampler that was trained on this ViT."
            )
        self.trained_on.check(spec, ignore_mismatch)
        left_out = (*ignore_mismatch, *_NOT_IN_CHECKPOINTS)
        self.feature_spec = FeatureSpec(**{name: value for name, value in vars(spec).items() if name not in left_out})

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # torch keeps module versions here; tensors would change the names in the state dict
        if hasattr(destination, "_metadata"):
            metadata = {**settings_to_metadata(self), **self.feature_spec.to_metadata()}
            destination._metadata.setdefault(prefix[:-1], {})[METADATA_KEY] = metadata

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        metadata = local_metadata.get(METADATA_KEY, {})
        FeatureSpec.from_metadata(metadata).check(self.feature_spec, source="The LiFT in this checkpoint")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def settings_to_metadata(upsampler: FeatureUpsampler) -> dict[str, str]:
    """Returns the registered name and, as JSON, the settings of an upsampler."""
    settings = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in upsampler.settings().items()
    }
    registered = UPSAMPLERS.get(upsampler.name) is type(upsampler)  # False for a subclass
    name = upsampler.name if registered else type(upsampler).__qualname__
    return {"upsampler": name, "settings": json.dumps(settings)}


def check_inputs(images: Tensor, features: Tensor) -> None:
    """Raises ValueError unless images (N, 3, H, W) and features (N, C, h, w) have the same N and aspect ratio."""
    if images.dim() != 4 or images.shape[1] != 3 or features.dim() != 4:
        raise ValueError(
            "An upsampler takes images (N, 3, H, W) and features (N, C, h, w); "
            f"got {tuple(images.shape)} and {tuple(features.shape)}."
        )
    (count, _, height, width), (maps, _, h, w) = images.shape, features.shape
    # in integers, because torch.export cannot reason about fractions
    if count != maps or 2 * abs(height * w - width * h) >= height + width:
        raise ValueError(
            f"{maps} maps of {h}×{w} do not belong to {count} images of {height}×{width} pixels: expected the same "
            "number and the same aspect ratio."
        )


def scaled_size(features: Tensor, steps: int = 1) -> tuple[int, int]:
    """Returns the height and width of a map after ``steps`` doublings."""
    return features.shape[-2] * 2**steps, features.shape[-1] * 2**steps


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (N, C, H, W) to ``size`` (height, width) bilinearly, with antialiasing if a side becomes smaller."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    smaller = maps.shape[-2] > size[0] or maps.shape[-1] > size[1]
    dtype = maps.dtype
    if smaller and maps.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()  # torch has no antialiasing in half precision on the CPU
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=smaller).to(dtype)
