"""LiFT itself: the network that doubles the resolution of a ViT's feature map, its bilinear control, and its files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import safetensors.torch
import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn

from lift_det.checkpoint import (
    LIFT_FACTS,
    CheckpointError,
    load_strictly,
    read_state_dict,
    strip_prefix,
)
from lift_det.files import write_atomically

from .lift_networks import AttentionPool, FeatureNorm, TrunkNetwork

PATCH_SIZES = (8, 14, 16, 32)
NETWORKS = ("paper", "trunk")
# Channels of the image branch (3 convolutions of stride 2 between the image and the map); section 3.2 of the paper.
_IMAGE_CHANNELS = 32


class FeatureUpsampler(nn.Module):
    """What doubles a feature map: ``forward(images, features)`` once, :meth:`upsample` any number of times."""

    def upsample(self, images: Tensor, features: Tensor, steps: int, original: Tensor | None = None) -> Tensor:
        """Doubles the map ``steps`` times, each step looking at an image twice as large as the last one's.

        Args:
            images: (N, 3, H, W), what the ViT saw, normalised as it saw it.
            features: (N, C, h, w), the ViT's map of ``images``.
            steps: how often to double; 0 returns ``features``.
            original: (N, 3, ?, ?), the image before it was reduced to ``images``. Later steps then look at it, resized,
                in place of an enlarged ``images``: LiFT was trained on real images of each size. Without it this is the
                paper's recursion, which enlarges bilinearly.

        Returns:
            (N, C, h · 2**steps, w · 2**steps)
        """
        source = images if original is None else original
        height, width = images.shape[-2:]
        for step in range(steps):
            if step:
                images = resize_images(source, (height * 2**step, width * 2**step))
            features = self.double(images, features)
        return features

    def double(self, images: Tensor, features: Tensor) -> Tensor:
        """One step of :meth:`upsample`; :meth:`forward`, but for what is to happen at the end alone."""
        return self(images, features)


class BilinearUpsample(FeatureUpsampler):
    """The control for LiFT: bilinear interpolation behind LiFT's interface, blind to the image, without parameters."""

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """(N, 3, H, W), (N, C, h, w) → (N, C, 2h, 2w)."""
        return bilinear_2x(features)


class LiFT(FeatureUpsampler):
    """The Lightweight Feature Transform (Suri et al., ECCV 2024, section 3.2).

    The image goes through convolutions of stride 2 down to the ViT's map. There it is concatenated to the features,
    a transposed convolution doubles the result, the image's features of that size are concatenated again, and two
    3×3 convolutions and a 1×1 convolution give the map of twice the resolution.

    With ``residual=False`` this is the paper's network under the names of its authors' release, and their files load.
    With ``residual=True`` the network's output is added to the bilinear upsampling of the input and its last layer
    starts at zero, so that it begins as bilinear. ``pool`` puts an attention pooling in bilinear's place, and
    ``network="trunk"`` another network in the paper's; what each gives is measured in the project's documentation.

    The image branch is made for 16 pixels a patch (8 for patch size 8); for other patch sizes the image is resized so
    that a patch is 16 pixels, which keeps the network and its files the same for every ViT.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        residual: bool = True,
        *,
        norm: str = "BN",
        network: str = "paper",
        pool: int = 0,
        normalize: bool = False,
        keep_length: bool = False,
        checkpoint: str | os.PathLike = "",
    ) -> None:
        """
        Args:
            in_channels: C, the ViT's width; even.
            patch_size: of the ViT, in pixels of the image that it sees: 8, 14, 16 or 32.
            residual: add the bilinear upsampling (see above); ``False`` is the paper's network.
            norm: ``"BN"`` as in the paper, or what else :func:`detectron2.layers.get_norm` knows, such as ``"SyncBN"``
                where a GPU holds one image, or ``"FrozenBN"``.
            network: ``"paper"``, or ``"trunk"``: :class:`lift_det.modeling.lift_networks.TrunkNetwork`.
            pool: side of the neighbourhood, in the ViT's cells, from which
                :class:`lift_det.modeling.lift_networks.AttentionPool` takes what the network's output is added to; odd,
                from 3. 0 is bilinear upsampling.
            normalize: give the network features of mean 0 and deviation 1 in each channel, and scale what it adds by
                each channel's deviation: some channels of a ViT are many times as large as others. See
                :class:`lift_det.modeling.lift_networks.FeatureNorm`.
            keep_length: give each feature vector the length that bilinear upsampling makes of the old ones' lengths.
                A cosine loss leaves lengths free; without this they drift, the more with each step. Directions are
                the same with and without it, also under recursion.
            checkpoint: a trained LiFT (``.safetensors``, or the authors' ``.pth``) for these settings.

        Raises:
            ValueError: another patch size, a width that cannot be divided, or a pool without ``residual``.
            CheckpointError: the checkpoint was trained for another width, patch size or kind.
        """
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(f"LiFT knows patch sizes {PATCH_SIZES}, not {patch_size}.")
        if network not in NETWORKS:
            raise ValueError(f"LiFT's network is one of {NETWORKS}, not '{network}'.")
        divisor = 2 if network == "paper" else 4
        if in_channels < divisor or in_channels % divisor:
            raise ValueError(f"LiFT divides the channels: expected a multiple of {divisor}, got {in_channels}.")
        if pool and (pool < 3 or pool % 2 == 0 or not residual):
            raise ValueError(f"pool={pool}, residual={residual}: a pool is odd, from 3, and needs residual=True.")
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.residual = residual
        self.norm = norm
        self.network = network
        self.pool_size = pool
        self.normalize = FeatureNorm(in_channels) if normalize else None
        self.keep_length = keep_length
        # goes into state dicts beside the tensors, which look alike in both kinds; the authors' files have 1
        self._version = 2 if residual else 1
        self.metadata: dict[str, str] = {}
        #: which features it is given, set by what it is built into; goes into state dicts with the settings
        self.features: dict[str, str] = {}
        self.register_state_dict_post_hook(_say_facts)
        #: pixels of a patch in the image branch, which reduces by 8 and, unless patches are that small, pools by 2
        self._patch_pixels = 8 if patch_size == 8 else 16

        # The paper's network is spelt out here, because the authors' files name its parts at the top.
        if network == "paper":
            hidden = in_channels // 2
            self.image_convs_1 = nn.Sequential(
                *_image_conv(3, norm),
                *_image_conv(_IMAGE_CHANNELS, norm),
            )
            self.scale_adapter = nn.Identity() if self._patch_pixels == 8 else nn.MaxPool2d(2, 2)
            self.image_convs_2 = nn.Sequential(*_image_conv(_IMAGE_CHANNELS, norm))
            self.up1 = _Up(in_channels + _IMAGE_CHANNELS, hidden, norm)
        else:
            self.trunk = TrunkNetwork(in_channels, self._patch_pixels, norm)
            hidden = self.trunk.out_channels
        self.outc = nn.Conv2d(hidden, in_channels, kernel_size=1)
        if residual:
            nn.init.zeros_(self.outc.weight)
            nn.init.zeros_(self.outc.bias)
        self.pool = AttentionPool(hidden, pool) if pool else None
        if checkpoint:
            self._load(*read_state_dict(checkpoint), source=str(checkpoint))

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Doubles a feature map once.

        Args:
            images: (N, 3, H, W), normalised as the ViT saw them.
            features: (N, C, h, w) with ``H = h · patch_size`` and ``W = w · patch_size``.

        Returns:
            (N, C, 2h, 2w)

        Raises:
            ValueError: shapes that do not belong together.
        """
        lifted = self.double(images, features)
        return _with_lengths_of(features, lifted) if self.keep_length else lifted

    def upsample(self, images: Tensor, features: Tensor, steps: int, original: Tensor | None = None) -> Tensor:
        """See :meth:`FeatureUpsampler.upsample`; ``keep_length`` counts at the end, not between steps."""
        lifted = super().upsample(images, features, steps, original)
        return _with_lengths_of(features, lifted) if self.keep_length and steps else lifted

    def double(self, images: Tensor, features: Tensor) -> Tensor:
        """As :meth:`forward`, with the lengths as the network gives them: what the next step was trained on."""
        self._check(images, features)
        h, w = features.shape[-2:]
        images = resize_images(images, (h * self._patch_pixels, w * self._patch_pixels))
        # as a ViT's map lies in memory, and as convolutions are quickest with it
        images = images.contiguous(memory_format=torch.channels_last)
        source = features
        if self.normalize is not None:
            features = self.normalize(features)
        if self.network == "paper":
            image_2x = self.scale_adapter(self.image_convs_1(images))  # (N, 32, 2h, 2w)
            image_1x = self.image_convs_2(image_2x)  # (N, 32, h, w)
            hidden = self.up1(torch.cat([features, image_1x], dim=1), image_2x)  # (N, C/2, 2h, 2w)
        else:
            hidden = self.trunk(images, features)  # (N, C/4, 2h, 2w)
        lifted = self.outc(hidden)
        if self.normalize is not None:
            lifted = lifted * self.normalize.deviation()
        if self.residual:
            lifted = lifted + (bilinear_2x(source) if self.pool is None else self.pool(source, hidden))
        return lifted

    def _check(self, images: Tensor, features: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or features.dim() != 4:
            raise ValueError(
                "LiFT takes images (N, 3, H, W) and features (N, C, h, w); "
                f"got {tuple(images.shape)} and {tuple(features.shape)}."
            )
        if features.shape[1] != self.in_channels:
            raise ValueError(f"This LiFT is for {self.in_channels} channels; the features have {features.shape[1]}.")
        expected = (features.shape[0], features.shape[2] * self.patch_size, features.shape[3] * self.patch_size)
        if (images.shape[0], *images.shape[2:]) != expected:
            raise ValueError(
                f"With patches of {self.patch_size} pixels, {features.shape[0]} maps of {features.shape[2]}×"
                f"{features.shape[3]} belong to {expected[0]} images of {expected[1]}×{expected[2]} pixels; "
                f"got {images.shape[0]} of {images.shape[2]}×{images.shape[3]}."
            )

    def _settings(self) -> dict[str, str]:
        """What a file of this LiFT must agree with, as its metadata spells it."""
        return {
            "in_channels": str(self.in_channels),
            "patch_size": str(self.patch_size),
            "residual": str(self.residual).lower(),
            "network": self.network,
            "pool": str(self.pool_size),
            "normalize": str(self.normalize is not None).lower(),
            "keep_length": str(self.keep_length).lower(),
        }

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        version = local_metadata.get("version")
        if version is not None and version != self._version:
            kinds = {1: "the paper's (residual=False)", 2: "a residual one (residual=True)"}
            raise CheckpointError(
                f"The LiFT in this checkpoint is {kinds.get(version, f'of version {version}')}, and the model's is "
                f"{kinds[self._version]}: make the config say what the checkpoint holds."
            )
        trained_on = local_metadata.get(LIFT_FACTS, {})
        other = {k: (trained_on[k], v) for k, v in self.features.items() if trained_on.get(k, v) != v}
        if other:
            raise CheckpointError(
                f"The LiFT in this checkpoint was trained on other features than the model's: {_both_sides(other)}. "
                "Give the model the features of the checkpoint, or start it without this LiFT. If the difference is "
                f"meant: allow_lift={list(other)}."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _load(self, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> None:
        settings = self._settings()
        # files from before there were other networks do not name theirs
        other = {k: metadata[k] for k in settings if k in metadata and metadata[k] != settings[k]}
        if other:
            raise CheckpointError(
                f"'{source}' holds a LiFT with {other}, and this one has { ({k: settings[k] for k in other}) }. "
                "Make the config say what the file holds, or train a LiFT for this ViT."
            )
        load_strictly(
            self,
            _lift_part(state_dict),
            source,
            hint=f"This LiFT is for {settings}: it fits one ViT's width. Name the LiFT that belongs to your ViT.",
        )
        self.metadata = dict(metadata)


def _with_lengths_of(features: Tensor, lifted: Tensor) -> Tensor:
    """(N, C, h, w), (N, C, h · k, w · k) → the latter's directions, with the former's lengths interpolated."""
    lengths = features.norm(dim=1, keepdim=True)
    lengths = F.interpolate(lengths, size=lifted.shape[-2:], mode="bilinear", align_corners=False)
    return lifted * (lengths / lifted.norm(dim=1, keepdim=True).clamp(min=1e-6))


def _say_facts(lift: LiFT, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: dict) -> None:
    """Puts beside a state dict's tensors what a LiFT's safetensors say in their metadata."""
    local_metadata[LIFT_FACTS] = {**lift.features, **lift._settings(), "norm": lift.norm}


def _both_sides(different: Mapping[str, tuple[str, str]]) -> str:
    return "; ".join(f"{name}: trained with '{a}', given '{b}'" for name, (a, b) in different.items())


def load_lift(path: str | os.PathLike, patch_size: int | None = None, residual: bool | None = None) -> LiFT:
    """Loads a trained LiFT; everything about it is read from the file.

    Args:
        path: a file that :func:`save_lift` wrote, a checkpoint of LiFT's training or of a detector, or one of the
            authors' ``.pth`` files.
        patch_size: needed where the file does not say it (the authors' do not).
        residual: likewise; the authors' files are ``False``.

    Returns:
        The LiFT, in evaluation mode, with ``.metadata`` as the file had it.

    Raises:
        CheckpointError: no such file, not a LiFT, or settings that neither the file nor the caller gives.
    """
    state_dict, metadata = read_state_dict(path)
    state_dict = _lift_part(state_dict)
    if "outc.weight" not in state_dict:
        raise CheckpointError(f"'{path}' is no LiFT: it has no 'outc.weight', but {list(state_dict)[:4]} …")
    if patch_size is None and "patch_size" in metadata:
        patch_size = int(metadata["patch_size"])
    if residual is None and "residual" in metadata:
        residual = metadata["residual"] == "true"
    if patch_size is None or residual is None:
        raise CheckpointError(
            f"'{path}' does not say its patch size or whether it is residual; name them: "
            "load_lift(path, patch_size=16, residual=False) for a file of the paper's authors."
        )
    # these the names say, in checkpoints of a training too
    network = "trunk" if any(name.startswith("trunk.") for name in state_dict) else "paper"
    pool = math.isqrt(state_dict["pool.prior"].shape[1]) if "pool.prior" in state_dict else 0
    width, norm = state_dict["outc.weight"].shape[0], metadata.get("norm", "BN")
    normalize = "normalize.mean" in state_dict
    lift = LiFT(
        width,
        patch_size,
        residual,
        norm=norm,
        network=network,
        pool=pool,
        normalize=normalize,
        keep_length=metadata.get("keep_length") == "true",
    )
    lift._load(state_dict, metadata, str(path))
    return lift.eval()


def save_lift(lift: LiFT, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a LiFT as safetensors with its settings as metadata; the file is whole or not there.

    Args:
        lift: what to save.
        path: ends in ``.safetensors``.
        metadata: more to say about it: the backbone, the data, the figures.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in lift.state_dict().items()}
    data = safetensors.torch.save(
        tensors, {**(metadata or {}), **lift._settings(), "norm": lift.norm, "format": "lift_det"}
    )
    write_atomically(path, lambda file: file.write(data))


def _lift_part(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LiFT's tensors of a state dict: all of it, or what a detector and LiFT's training keep as ``backbone.lift``."""
    state_dict = strip_prefix(state_dict, "module.")
    prefix = "backbone.lift."
    part = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    return part or state_dict


def bilinear_2x(features: Tensor) -> Tensor:
    """(N, C, h, w) → (N, C, 2h, 2w), bilinear with ``align_corners=False``."""
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (N, 3, H, W) to ``size`` = (height, width), bilinearly, antialiased where that makes it smaller."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    smaller = images.shape[-2] > size[0] or images.shape[-1] > size[1]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=smaller)


def _image_conv(in_channels: int, norm: str) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, _IMAGE_CHANNELS, kernel_size=3, padding=1, stride=2),
        get_norm(norm, _IMAGE_CHANNELS) or nn.Identity(),
        nn.ReLU(inplace=True),
    ]


class _Up(nn.Module):
    """Doubles the map, then mixes in the image's features of that size."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv_1 = _DoubleConv(in_channels // 2 + _IMAGE_CHANNELS, out_channels, norm)

    def forward(self, x: Tensor, image_2x: Tensor) -> Tensor:
        return self.conv_1(torch.cat([self.up(x), image_2x], dim=1))


class _DoubleConv(nn.Module):
    """Two 3×3 convolutions; a module of its own because the authors' files name it."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),
                get_norm(norm, out_channels) or nn.Identity(),
                nn.ReLU(inplace=True),
            ]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)
