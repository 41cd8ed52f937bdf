"""Builds the models of benchmark_model.py: part of a config's model, and the same part of detectron2's ViTDet."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import ViT
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

# lift_det is imported in functions, because its memory must not count for detectron2's process.

PARTS = ("model", "backbone", "features", "net")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STOCK_CONFIG = "common/models/mask_rcnn_vitdet.py"
OBJECTS = 10


class Settings(NamedTuple):
    """The settings of one side. A dtype other than fp32 uses autocast."""

    config: str
    overrides: tuple[str, ...]
    part: str
    train: bool
    image_size: int
    batch: int
    dtype: str
    device: str


def our_config(name: str, overrides: Sequence[str], image_size: int) -> DictConfig:
    """Loads a LazyConfig of lift_det for square images, without weights."""
    from lift_det import config

    cfg = config.load(name)
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{name} is not a LazyConfig (.py).")
    backbone = cfg.model.backbone
    for part in (backbone.net, backbone.get("lift")):
        if part is not None and "checkpoint" in part:
            part.checkpoint = ""
        if part is not None and "pretrained" in part:
            part.pretrained = False
    backbone.square_pad = image_size
    if "mask_format" in cfg.model:
        cfg.model.mask_format = "bitmask"  # like detectron2
    return LazyConfig.apply_overrides(cfg, list(overrides))


def stock_net(cfg: DictConfig) -> dict[str, Any]:
    """Returns the arguments of the config's ViT for detectron2's; empty if it is not a ``lift_det.ViT``."""
    from lift_det.modeling import ViT as OurViT

    net = cfg.model.backbone.net
    if net._target_ is not OurViT:
        return {}
    arguments = OmegaConf.to_container(net, resolve=True)
    not_in_stock = ("_target_", "checkpoint", "use_act_checkpoint")  # the last one needs fairscale in detectron2
    return {name: value for name, value in arguments.items() if name not in not_in_stock}


def build_ours(settings: Settings) -> Pass:
    cfg = our_config(settings.config, settings.overrides, settings.image_size)
    return _build(cfg.model, settings, cfg.model.backbone.input_scale)


def build_stock(net: dict[str, Any], settings: Settings) -> Pass:
    """Builds detectron2's model; ``net`` has arguments for its ViT, or is empty for those of its config."""
    cfg = model_zoo.get_config(settings.config)
    if net:
        cfg.model.backbone.net = {"_target_": ViT, **net}
    cfg.model.backbone.square_pad = settings.image_size
    return _build(LazyConfig.apply_overrides(cfg, list(settings.overrides)).model, settings, 1.0)


class Pass:
    """A part of a model. Calling it runs inference, or forward and backward in training.

    ``forward`` returns the detector's losses or detections, or a dict of feature maps.
    """

    def __init__(self, module: nn.Module, forward: Callable[[], Any], settings: Settings) -> None:
        self.module = module.train(settings.train)
        self.forward = forward
        self.settings = settings
        self._gradients: list[Tensor] = []

    def __call__(self) -> None:
        if not self.settings.train:
            with torch.no_grad():
                self._cast_forward(self.settings.dtype)
            return
        self.module.zero_grad(set_to_none=True)
        with EventStorage():  # required by the detector's heads
            outputs = list(self._cast_forward(self.settings.dtype).values())
        if not all(output.requires_grad for output in outputs):
            raise RuntimeError("This part has no trainable parameters: it is frozen.")
        if self.settings.part == "model":
            sum(outputs).backward()
            return
        # Random gradients, because the gradient of the sum of a normalized map is zero.
        self._gradients = self._gradients or [torch.randn_like(output) for output in outputs]
        torch.autograd.backward(outputs, self._gradients)

    def parameter_names(self) -> list[str]:
        return sorted(name for name, _ in self.module.named_parameters())

    def outputs(self, dtype: str) -> dict[str, Any]:
        """Returns the feature maps as fp32 arrays."""
        with torch.no_grad():
            return {name: value.float().cpu().numpy() for name, value in self._cast_forward(dtype).items()}

    def _cast_forward(self, dtype: str) -> Any:
        with torch.autocast(self.settings.device.split(":")[0], dtype=DTYPES[dtype], enabled=dtype != "fp32"):
            return self.forward()


def _build(model_config: DictConfig, settings: Settings, input_scale: float) -> Pass:
    torch.manual_seed(0)
    size, part = settings.image_size, settings.part
    model = instantiate(model_config if part == "model" else model_config.backbone).to(settings.device)
    backbone = model.backbone if part == "model" else model
    _seed_weights(backbone)
    if part == "model":
        for module in model.modules():
            if isinstance(module, FastRCNNOutputLayers):  # the first class in every proposal, with a score of 0.97
                module.cls_score.bias.data[0] = 8.0
        images = _annotated_images(settings)
        return Pass(model, lambda: model(images), settings)
    image = torch.randn(settings.batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(settings.device)
    if part == "backbone":
        return Pass(backbone, lambda: backbone(image), settings)
    if part == "features" and getattr(backbone, "lift", None) is not None:
        return Pass(backbone, lambda: {"features": backbone.forward_features(image)[1]}, settings)
    if input_scale != 1:
        image = F.interpolate(image, size=(round(size * input_scale),) * 2, mode="bilinear")
    return Pass(backbone.net, lambda: backbone.net(image), settings)


def _seed_weights(backbone: nn.Module) -> None:
    """Gives parameters with the same name and shape the same weights.

    This includes parameters that are initialized to zero and would have no effect: relative positions and LiFT's last
    layer. Biases and norms are unchanged.
    """
    for name, parameter in backbone.named_parameters():
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * (len(parameter) / parameter.numel()) ** 0.5)


def _annotated_images(settings: Settings) -> list[dict[str, Any]]:
    """Returns a batch like detectron2's mapper: images of noise with rectangular objects."""
    generator = torch.Generator().manual_seed(0)
    size = settings.image_size
    batch = []
    for _ in range(settings.batch):
        sides = size * (1 + 7 * torch.rand(OBJECTS, 2, generator=generator)) / 16
        corners = (size - sides) * torch.rand(OBJECTS, 2, generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=1)
        centers = torch.arange(size) + 0.5
        columns = (centers >= boxes[:, 0:1]) & (centers < boxes[:, 2:3])  # (OBJECTS, size)
        rows = (centers >= boxes[:, 1:2]) & (centers < boxes[:, 3:4])
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(OBJECTS, dtype=torch.int64)
        instances.gt_masks = BitMasks(rows[:, :, None] & columns[:, None, :])
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "height": size, "width": size, "instances": instances})
    return batch
