"""ViTDet's simple feature pyramid with an upsampler between the ViT and the pyramid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn

from .feature_spec import FeatureSpec
from .norms import use_channel_layer_norm
from .upsamplers import FeatureUpsampler, LazyUpsampler, fit_upsampler, resize, scaled_size


class LiFTFeaturePyramid(SimpleFeaturePyramid):
    """ViTDet's backbone with an upsampler: a ViT, an upsampler of its feature map, and a simple feature pyramid.

    It is used in two ways (docs/lift_in_vitdet.md):

    - *dense*, as in the paper: the ViT gets the image at full size, and LiFT doubles its map from stride 16 to 8;
    - *fast*: the ViT gets the image at half size (``input_scale=0.5``), and LiFT restores stride 16.

    The upsampler always gets the image at full size. The upsampled map has a stride of ``patch_size / 2**steps /
    input_scale`` pixels of the image.

    State-dict names are ViTDet's (``net.*``, ``simfp_2.*``, …) and ``lift.*``. With ``lift=None`` and ``input_scale=1``
    the outputs equal those of detectron2's SimpleFeaturePyramid up to rounding.
    """

    def __init__(
        self,
        net: Backbone,
        lift: FeatureUpsampler | LazyUpsampler | None,
        in_feature: str,
        out_channels: int,
        level_strides: Sequence[int] = (4, 8, 16, 32),
        steps: int = 1,
        input_scale: float = 1.0,
        top_block: nn.Module | None = None,
        norm: str = "LN",
        square_pad: int = 0,
        freeze_net: bool = False,
        freeze_lift: bool = False,
        ignore_mismatch: Sequence[str] = (),
    ) -> None:
        """
        Args:
            net: the ViT.
            lift: upsampler of the ViT's map. A :class:`LazyUpsampler` is built for this ViT. None for plain ViTDet.
            in_feature: name of the ViT's map in ``net.output_shape()``.
            out_channels: number of channels of every level.
            level_strides: strides of the levels in pixels of the image, from fine to coarse: powers of two, each twice
                the previous one. The level of stride 2**n is named ``pn``.
            steps: number of times that ``lift`` doubles the map.
            input_scale: factor by which the image is resized for the ViT. The map's stride has to be a power of two:
                for patches of 14 pixels use 14/16 or 7/16.
            top_block: adds levels, such as ``LastLevelMaxPool()``. Its ``in_feature`` has to be a level.
            norm: normalisation of the pyramid's convolutions.
            square_pad: pad images to squares of this side; larger images are an error. 0 pads to whole strides only.
            freeze_net: freeze the ViT and keep it in evaluation mode.
            freeze_lift: freeze the upsampler and keep it in evaluation mode.
            ignore_mismatch: fields of :class:`FeatureSpec`, such as ``("backbone", "weights")``, in which the ViT's
                features may differ from those that ``lift`` was trained on.

        Raises:
            CheckpointError: ``lift`` was trained on other features. The ViT's weights are compared if it was built with
                them.
            ValueError: invalid strides, ``square_pad`` or ``steps``, or a ``lift`` for another width or patch size.
        """
        super(SimpleFeaturePyramid, self).__init__()  # SimpleFeaturePyramid supports only factors 4, 2, 1 and 0.5
        shape = net.output_shape()[in_feature]
        if steps < 1 or int(steps) != steps or input_scale <= 0:
            raise ValueError(
                f"steps={steps}, input_scale={input_scale}: expected a positive integer and a positive number."
            )
        self.steps = steps if lift is not None else 0
        self.input_scale = input_scale
        self.ignore_mismatch = tuple(ignore_mismatch)
        source = net if hasattr(net, "feature_spec") else None
        spec = FeatureSpec() if source is None else source.feature_spec(weights=False)
        spec = dataclasses.replace(spec, in_channels=shape.channels, patch_size=shape.stride)
        lift = fit_upsampler(lift, spec, source, ignore_mismatch=ignore_mismatch)
        patch_stride = _patch_stride(shape.stride, input_scale)
        self._patch_pixels = (shape.stride, patch_stride)  # side of a patch in the ViT's image and in the full image
        strides = _check_strides(level_strides)

        self.stages = []
        for stride in strides:
            scale = patch_stride / 2**self.steps / stride
            stage = _build_stage(shape.channels, out_channels, scale, norm)
            use_channel_layer_norm(stage)
            self.add_module(f"simfp_{int(math.log2(stride))}", stage)
            self.stages.append(stage)
        self.net = net
        self.lift = lift
        self.in_feature = in_feature
        self.top_block = top_block

        num_top_levels = 0 if top_block is None else top_block.num_levels
        strides_all = [*strides, *(strides[-1] * 2 ** (i + 1) for i in range(num_top_levels))]
        self._out_feature_strides = {f"p{int(math.log2(s))}": s for s in strides_all}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        levels = self._out_features[: len(strides)]
        if top_block is not None and top_block.in_feature not in (*levels, in_feature):
            raise ValueError(
                f"top_block reads the level '{top_block.in_feature}', and this pyramid has {levels}: set its "
                "in_feature, or leave top_block out."
            )

        self._size_divisibility = max(patch_stride, strides[-1])
        if square_pad % self._size_divisibility:
            raise ValueError(f"square_pad={square_pad} has to be a multiple of {self._size_divisibility}.")
        self._square_pad = square_pad
        self.freeze_net = freeze_net
        self.freeze_lift = freeze_lift
        if freeze_net:
            net.requires_grad_(False)
        if freeze_lift and lift is not None:
            lift.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> LiFTFeaturePyramid:
        """Sets the mode. Frozen modules stay in evaluation mode."""
        super().train(mode)
        if self.freeze_net:
            self.net.eval()
        if self.freeze_lift and self.lift is not None:
            self.lift.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        """Height and width of the images have to be multiples of this number."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Padding for ImageList. Its ``square_size`` crops a single larger image, so squares use a divisibility."""
        return {"size_divisibility": self._square_pad or self._size_divisibility, "square_size": 0}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W), normalised, with H and W multiples of :attr:`size_divisibility`.

        Returns:
            ``{"p2": (N, out_channels, H / 4, W / 4), …}``, from fine to coarse.

        Raises:
            ValueError: H or W is larger than ``square_pad``, or not such a multiple.
        """
        bottom_up, features = self.forward_features(x)
        results = [stage(features) for stage in self.stages]
        if self.top_block is not None:
            source = bottom_up.get(self.top_block.in_feature)
            if source is None:
                source = results[self._out_features.index(self.top_block.in_feature)]
            results.extend(self.top_block(source))
        return dict(zip(self._out_features, results, strict=True))

    def forward_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Computes the ViT's outputs, and the upsampled map (N, C, H / stride, W / stride), as in :meth:`forward`."""
        self._check_size(x)
        # in integers, because torch.export cannot follow input_scale
        scaled, full = self._patch_pixels
        images = resize(x, (x.shape[-2] * scaled // full, x.shape[-1] * scaled // full))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_net):
            bottom_up = self.net(images)
        features = bottom_up[self.in_feature]
        if self.steps:
            size = scaled_size(features, self.steps)
            features = self.lift(x, features, size)
            if tuple(features.shape[-2:]) != size:
                raise ValueError(
                    f"{type(self.lift).__name__} was asked for a map of {size[0]}×{size[1]} and gave one of "
                    f"{features.shape[-2]}×{features.shape[-1]}: it has to follow output_size."
                )
        return bottom_up, features

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if self._square_pad and (height > self._square_pad or width > self._square_pad):
            raise ValueError(
                f"An image is larger than square_pad={self._square_pad} (the batch is {height}×{width}): reduce it "
                "with ResizeShortestEdge's max_size, or set square_pad to a larger value or 0."
            )
        if height % self._size_divisibility or width % self._size_divisibility:
            raise ValueError(
                f"The batch is {height}×{width} pixels; both sides have to be multiples of {self._size_divisibility}. "
                "ImageList pads to that with this backbone's padding_constraints."
            )


def _patch_stride(net_stride: int, input_scale: float) -> int:
    stride = net_stride / input_scale
    rounded = round(stride)
    if abs(stride - rounded) > 1e-6 or rounded < 1 or rounded & (rounded - 1):
        raise ValueError(
            f"The ViT's map has a stride of {stride:g} pixels of the image (patch size {net_stride}, input_scale "
            f"{input_scale:g}); it has to be a power of two. For patches of 14 pixels set input_scale to 14/16 or 7/16."
        )
    return rounded


def _check_strides(strides: Sequence[int]) -> list[int]:
    powers_of_two = all(s >= 1 and s == int(s) and int(s) & (int(s) - 1) == 0 for s in strides)
    if not strides or not powers_of_two or any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
        raise ValueError(
            f"level_strides={list(strides)}: expected powers of two, each twice the one before, such as [4, 8, 16, 32]."
        )
    return [int(s) for s in strides]


def _build_stage(dim: int, out_channels: int, scale: float, norm: str) -> nn.Sequential:
    """Builds one level as SimpleFeaturePyramid does, with the same state-dict names, for any power of two."""
    layers: list[nn.Module] = []
    doublings = int(math.log2(scale))
    for i in range(doublings):
        if i:
            layers += [get_norm(norm, dim) or nn.Identity(), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2))
        dim //= 2
    if doublings < 0:
        layers.append(nn.MaxPool2d(kernel_size=2**-doublings, stride=2**-doublings))
    for kernel_size in (1, 3):
        layers.append(
            Conv2d(
                dim,
                out_channels,
                kernel_size=kernel_size,
                padding=kernel_size // 2,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
        )
        dim = out_channels
    return nn.Sequential(*layers)
