"""The slot between ViT and pyramid: the base class of everything that upsamples features, and its registry."""

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


def register_upsampler(name: str) -> Callable[[_Class], _Class]:
    """A class decorator that makes an upsampler known to :func:`lift_det.modeling.build_upsampler` and to configs.

    Raises:
        ValueError: the name is taken.
    """

    def register(upsampler: _Class) -> _Class:
        if name in UPSAMPLERS:
            raise ValueError(f"The upsampler '{name}' is registered already: {UPSAMPLERS[name].__qualname__}.")
        UPSAMPLERS[name] = upsampler
        upsampler.name = name
        return upsampler

    return register


class FeatureUpsampler(nn.Module, ABC):
    """Upsamples a ViT's feature map, guided by the image. Subclasses implement :meth:`forward`; that is enough.

    A subclass whose arguments are to travel with its weights (:func:`lift_det.save_lift`) names them in
    :meth:`settings` and is registered.

    Attributes:
        name: in the registry; empty for a class that is not registered.
        in_channels: C that it takes; None takes any.
        patch_size: in pixels, of the ViT that it belongs to; None takes any.
        metadata: of the file that it was loaded from.
        feature_spec: which features it is given, set by the model that it is built into.
        trained: whether it was loaded from a checkpoint.
    """

    name: ClassVar[str] = ""
    in_channels: int | None = None
    patch_size: int | None = None
    #: arguments that a file has to state although they have a default, because its tensors would fit either way
    stated_by_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, str] = {}
        self.feature_spec = FeatureSpec()
        self.trained = False

    @abstractmethod
    def forward(self, images: Tensor, features: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """Upsamples a feature map.

        Args:
            images: (N, 3, H, W), normalised as the ViT's are, of any resolution with the map's aspect. The more
                pixels, the more there is to see: the upsampler resizes the image to what it looks at.
            features: (N, C, h, w).
            output_size: (height, width) of the result; None is (2h, 2w).

        Returns:
            (N, C, *output_size)
        """

    def step(self, images: Tensor, features: Tensor) -> Tensor:
        """One doubling, as it is trained and as recursion chains it: (N, C, h, w) → (N, C, 2h, 2w).

        It is :meth:`forward` without what an upsampler does only once, at the end.
        """
        return self(images, features)

    def upsample(self, images: Tensor, features: Tensor, steps: int) -> Tensor:
        """:meth:`forward` to 2**steps times the map's size; 0 steps return ``features``."""
        if steps == 0:
            return features
        return self(images, features, scaled_size(features, steps))

    def settings(self) -> dict[str, Any]:
        """The arguments that build this upsampler again (of JSON's types), by name; kept beside its weights."""
        return {}

    @property
    def trained_on(self) -> FeatureSpec:
        """Which features it was trained on, as far as its file says."""
        return FeatureSpec.from_metadata(self.metadata)

    def use_features(self, spec: FeatureSpec, allow: Sequence[str] = ()) -> None:
        """Tells the upsampler which features it is given; checkpoints of the model then say so.

        Args:
            spec: of the features.
            allow: fields in which ``spec`` may differ from what the upsampler was trained on.

        Raises:
            ValueError: another width or patch size than the upsampler takes.
            CheckpointError: it was trained on other features.
        """
        for name in ("in_channels", "patch_size"):
            if None not in (ours := getattr(self, name), given := getattr(spec, name)) and ours != given:
                raise ValueError(
                    f"{type(self).__name__} is for {self.in_channels} channels and patches of {self.patch_size} "
                    f"pixels, the ViT has {spec.in_channels} and {spec.patch_size}: leave in_channels and patch_size "
                    "out, or take the one that was trained on this ViT."
                )
        self.trained_on.check(spec, allow)
        kept = {name: value for name, value in vars(spec).items() if name not in (*allow, *_NOT_IN_CHECKPOINTS)}
        self.feature_spec = FeatureSpec(**kept)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # beside the tensors, where torch keeps module versions: names in the state dict stay what they are
        if hasattr(destination, "_metadata"):
            metadata = {**settings_to_metadata(self), **self.feature_spec.to_metadata()}
            destination._metadata.setdefault(prefix[:-1], {})[METADATA_KEY] = metadata

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        metadata = local_metadata.get(METADATA_KEY, {})
        FeatureSpec.from_metadata(metadata).check(self.feature_spec, source="The LiFT in this checkpoint")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


# The ViT's weights and statistics are in the checkpoint themselves.
_NOT_IN_CHECKPOINTS = ("weights", "pixel_mean", "pixel_std")


def settings_to_metadata(upsampler: FeatureUpsampler) -> dict[str, str]:
    """The kind and :meth:`FeatureUpsampler.settings` of an upsampler, as strings for a file's metadata.

    ``settings`` has them as JSON, which is what is read again; each also stands under its own name, for people, unless
    a :class:`FeatureSpec` has a field of that name.
    """
    settings = upsampler.settings()
    settings = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in settings.items()}
    taken = set(vars(FeatureSpec())) - {"in_channels", "patch_size"}
    single = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items() if k not in taken}
    # the registered name is this class's, and not one that it inherits
    registered = UPSAMPLERS.get(upsampler.name) is type(upsampler)
    name = upsampler.name if registered else type(upsampler).__qualname__
    return {**single, "upsampler": name, "settings": json.dumps(settings)}


def check_inputs(images: Tensor, features: Tensor) -> None:
    """Checks that images and features belong together.

    Raises:
        ValueError: other dimensions, another number of images than of maps, or an aspect that differs by a cell of the
            map or more.
    """
    if images.dim() != 4 or images.shape[1] != 3 or features.dim() != 4:
        raise ValueError(
            "An upsampler takes images (N, 3, H, W) and features (N, C, h, w); "
            f"got {tuple(images.shape)} and {tuple(features.shape)}."
        )
    (count, _, height, width), (maps, _, h, w) = images.shape, features.shape
    # in whole numbers, which torch.export can reason about
    if count != maps or 2 * abs(height * w - width * h) >= height + width:
        raise ValueError(
            f"{maps} maps of {h}×{w} do not belong to {count} images of {height}×{width} pixels: expected as many "
            "images, with the map's aspect."
        )


def scaled_size(features: Tensor, steps: int = 1) -> tuple[int, int]:
    """(height, width) of a map after ``steps`` doublings."""
    return features.shape[-2] * 2**steps, features.shape[-1] * 2**steps


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (N, C, H, W) to ``size`` = (height, width), bilinearly, antialiased where that makes it smaller."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    smaller = maps.shape[-2] > size[0] or maps.shape[-1] > size[1]
    dtype = maps.dtype
    if smaller and maps.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()  # torch has no antialiasing in half precision there
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=smaller).to(dtype)
