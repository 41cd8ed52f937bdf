"""ViTDet's simple feature pyramid with an upsampler, such as LiFT, between the ViT and the pyramid."""

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
    """A ViT, an upsampler of its features, and the pyramid that Mask R-CNN reads, as one detectron2 backbone.

    Its two uses (docs/lift_in_vitdet.md):

    - *dense*, the paper's: the ViT sees the whole image, LiFT takes its map of stride 16 to stride 8;
    - *fast*: the ViT sees the image at half size (``input_scale=0.5``), and LiFT brings the map back to the size it
      has in ViTDet, so that pyramid, heads and checkpoints are ViTDet's own.

    The map that the pyramid starts from has stride ``net.stride / 2**steps / input_scale`` in pixels of the image, and
    each level is made of it by the factor that its own stride asks for. A ViT of patch 14 reaches powers of two with
    an ``input_scale`` of 14/16 (or 7/16): a patch is then 16 (32) pixels of the image. Scaling the image leaves the
    pretrained patch embedding as it is; resampling the embedding to patches of 16 pixels would change the features.

    The upsampler is given the whole image in both: there is more to see in it than in what the ViT saw.

    Names in the state dict are ViTDet's (``net.*``, ``simfp_2.*`` …), and ``lift.*``. With ``lift=None``, upstream's
    strides and ``input_scale=1`` the outputs are upstream's, but for rounding.
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
        allow_lift: Sequence[str] = (),
    ) -> None:
        """
        Args:
            net: the ViT; ``net.output_shape()[in_feature]`` gives its stride and width.
            lift: upsamples the map; a :class:`LazyUpsampler` is built for this ViT. ``None`` is ViTDet without LiFT.
            in_feature: name of the ViT's map.
            out_channels: of every pyramid level.
            level_strides: of the levels, in pixels of the image, from fine to coarse; each a power of two, each twice
                the one before. They are named by its logarithm: p2 has stride 4.
            steps: how often the map is doubled (0 where ``lift`` is ``None``).
            input_scale: the ViT sees the image at this scale.
            top_block: as upstream's, e.g. ``LastLevelMaxPool()``; its ``in_feature`` has to be a level.
            norm: of the pyramid's convolutions.
            square_pad: pad every image to this many pixels square; a larger one is an error. 0 pads to what
                the strides ask for.
            freeze_net: train nothing in the ViT, and keep it in evaluation mode.
            freeze_lift: the same for the upsampler: its BatchNorm statistics stay, too.
            allow_lift: fields of :class:`FeatureSpec` in which a trained LiFT's features may differ from this ViT's,
                such as ``("backbone", "weights")``.

        Raises:
            CheckpointError: a LiFT that was trained on other features than the ViT's. The ViT's weights are compared
                only if it was built with them.
            ValueError: strides that are no powers of two, levels that do not follow each other, a ``square_pad`` that
                is no multiple of the coarsest stride, or a LiFT for another width or patch size than the ViT's.
        """
        super(SimpleFeaturePyramid, self).__init__()  # upstream's own __init__ knows only the factors 4, 2, 1 and 0.5
        shape = net.output_shape()[in_feature]
        if steps < 1 or int(steps) != steps or input_scale <= 0:
            raise ValueError(
                f"steps={steps}, input_scale={input_scale}: expected one or more whole steps and a positive scale."
            )
        self.steps = steps if lift is not None else 0
        self.input_scale = input_scale
        self.allow_lift = tuple(allow_lift)
        describes = hasattr(net, "feature_spec")
        spec = net.feature_spec(weights=False) if describes else FeatureSpec()
        spec = dataclasses.replace(spec, in_channels=shape.channels, patch_size=shape.stride)
        lift = fit_upsampler(lift, spec, net if describes else None, allow=allow_lift)
        patch_stride = _patch_stride(shape.stride, input_scale)
        self._patch_pixels = (shape.stride, patch_stride)  # of a patch, as the ViT sees it and of the image
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

        if top_block is not None:
            strides_all = [*strides, *(strides[-1] * 2 ** (i + 1) for i in range(top_block.num_levels))]
        else:
            strides_all = strides
        # levels are named p2, p3, … by the logarithm of their stride
        self._out_feature_strides = {f"p{int(math.log2(s))}": s for s in strides_all}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        levels = self._out_features[: len(strides)]
        if top_block is not None and top_block.in_feature not in (*levels, in_feature):
            raise ValueError(
                f"top_block reads the level '{top_block.in_feature}', and this pyramid has {levels}: "
                "leave top_block out, or set its in_feature."
            )

        # whole patches for the ViT, whole cells for the coarsest level
        self._size_divisibility = max(patch_stride, strides[-1])
        if square_pad % self._size_divisibility:
            raise ValueError(f"square_pad={square_pad} has to be a multiple of {self._size_divisibility} pixels.")
        self._square_pad = square_pad
        self.freeze_net = freeze_net
        self.freeze_lift = freeze_lift
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def _frozen(self) -> list[nn.Module]:
        return ([self.net] if self.freeze_net else []) + (
            [self.lift] if self.freeze_lift and self.lift is not None else []
        )

    def train(self, mode: bool = True) -> LiFTFeaturePyramid:
        """As upstream's, but what is frozen stays in evaluation mode: detectron2's trainer calls ``model.train()``."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        """Height and width of the padded images are multiples of this many pixels."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What :class:`detectron2.structures.ImageList` pads to.

        A square is asked for as a divisibility of ``square_pad``, not as ImageList's ``square_size``: with that a lone
        larger image is cropped without a word. This way it is padded to more than the square, which
        :meth:`forward` refuses.
        """
        return {"size_divisibility": self._square_pad or self._size_divisibility, "square_size": 0}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W), normalised and padded; H and W multiples of :attr:`size_divisibility`.

        Returns:
            ``{"p2": (N, out_channels, H / 4, W / 4), …}``, from fine to coarse.

        Raises:
            ValueError: an image larger than ``square_pad``, or not a multiple of :attr:`size_divisibility`.
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
        """Everything before the pyramid.

        Args:
            x: as in :meth:`forward`.

        Returns:
            What the ViT gives, and the map that the pyramid starts from, (N, C, H / s, W / s) with ``s`` the stride
            ``net.stride / 2**steps / input_scale``: the ViT's map after LiFT.
        """
        self._check_size(x)
        # what the ViT sees: input_scale in whole numbers, which torch.export can follow
        seen, whole = self._patch_pixels
        images = resize(x, (x.shape[-2] * seen // whole, x.shape[-1] * seen // whole))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_net):
            bottom_up = self.net(images)
        features = bottom_up[self.in_feature]
        if self.steps:
            size = scaled_size(features, self.steps)
            features = self.lift(x, features, size)
            if tuple(features.shape[-2:]) != size:
                raise ValueError(
                    f"{type(self.lift).__name__} was asked for a map of {size[0]}×{size[1]} and gave one of "
                    f"{features.shape[-2]}×{features.shape[-1]}: an upsampler has to follow output_size."
                )
        return bottom_up, features

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if self._square_pad and (height > self._square_pad or width > self._square_pad):
            raise ValueError(
                f"An image is larger than square_pad={self._square_pad} (the batch was padded to {height}×{width}). "
                "Resize images to at most that size (ResizeShortestEdge's max_size), or set square_pad to a larger "
                "multiple, or to 0."
            )
        if height % self._size_divisibility or width % self._size_divisibility:
            raise ValueError(
                f"The batch is {height}×{width} pixels; its sides have to be multiples of {self._size_divisibility}. "
                "detectron2's ImageList pads to that with this backbone's padding_constraints."
            )


def _patch_stride(net_stride: int, input_scale: float) -> int:
    stride = net_stride / input_scale
    # 14 / 0.4375 and the like are exact in floating point; a config's 0.8750001 is not meant
    rounded = round(stride)
    if abs(stride - rounded) > 1e-6 or rounded < 1 or rounded & (rounded - 1):
        raise ValueError(
            f"The ViT's map has stride {stride:g} in pixels of the image (patches of {net_stride} / input_scale "
            f"{input_scale:g}), and a pyramid needs a power of two. For patches of 14 pixels set input_scale to 14/16 "
            "or 7/16."
        )
    return rounded


def _check_strides(strides: Sequence[int]) -> list[int]:
    powers_of_two = all(s >= 1 and s == int(s) and int(s) & (int(s) - 1) == 0 for s in strides)
    if not strides or not powers_of_two or any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
        raise ValueError(
            f"level_strides={list(strides)}: each has to be a power of two and twice the one before, such as "
            "[4, 8, 16, 32]."
        )
    return [int(s) for s in strides]


def _build_stage(dim: int, out_channels: int, scale: float, norm: str) -> nn.Sequential:
    """One level, made as upstream makes it (so the names in the state dict agree), for any power of two.

    Enlarging halves the channels with every transposed convolution; reducing is a max pooling.
    """
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
