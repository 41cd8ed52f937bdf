"""The sides of benchmark_model.py: a part of a config's model, and the same part of detectron2's stock ViTDet."""

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

# lift_det is imported inside of functions, to keep its memory out of the stock side's process.

PARTS = ("model", "backbone", "features", "net")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STOCK_CONFIG = "common/models/mask_rcnn_vitdet.py"
OBJECTS = 10


class Settings(NamedTuple):
    """One side: its config and what is run. A dtype other than fp32 is autocast's."""

    config: str
    overrides: tuple[str, ...]
    part: str
    train: bool
    image_size: int
    batch: int
    dtype: str
    device: str


def our_config(name: str, overrides: Sequence[str], image_size: int) -> DictConfig:
    """A LazyConfig of lift_det for images of one size, without weight files."""
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
        cfg.model.mask_format = "bitmask"  # as the stock side
    return LazyConfig.apply_overrides(cfg, list(overrides))


def stock_net(cfg: DictConfig) -> dict[str, Any]:
    """Arguments that make detectron2's ViT equal to the config's; empty for another class than ``lift_det.ViT``."""
    from lift_det.modeling import ViT as OurViT

    net = cfg.model.backbone.net
    if net._target_ is not OurViT:
        return {}
    arguments = OmegaConf.to_container(net, resolve=True)
    not_in_stock = ("_target_", "checkpoint", "use_act_checkpoint")  # upstream, the last one needs fairscale
    return {name: value for name, value in arguments.items() if name not in not_in_stock}


def build_ours(settings: Settings) -> Pass:
    cfg = our_config(settings.config, settings.overrides, settings.image_size)
    return _build(cfg.model, settings, cfg.model.backbone.input_scale)


def build_stock(net: dict[str, Any], settings: Settings) -> Pass:
    """``net``: arguments of detectron2's ViT, or empty for those of the stock config."""
    cfg = model_zoo.get_config(settings.config)
    if net:
        cfg.model.backbone.net = {"_target_": ViT, **net}
    cfg.model.backbone.square_pad = settings.image_size
    return _build(LazyConfig.apply_overrides(cfg, list(settings.overrides)).model, settings, 1.0)


class Pass:
    """A callable that runs its part once: forward without gradients, or forward and backward.

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
        with EventStorage():  # the detector's heads log there
            outputs = list(self._cast_forward(self.settings.dtype).values())
        if not all(output.requires_grad for output in outputs):
            raise RuntimeError("This part has no trainable parameters: it is frozen.")
        if self.settings.part == "model":
            sum(outputs).backward()
            return
        # not a sum as loss, because the gradient of a normalised map's sum is zero
        self._gradients = self._gradients or [torch.randn_like(output) for output in outputs]
        torch.autograd.backward(outputs, self._gradients)

    def parameter_names(self) -> list[str]:
        return sorted(name for name, _ in self.module.named_parameters())

    def outputs(self, dtype: str) -> dict[str, Any]:
        """The feature maps as fp32 arrays."""
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

    All but biases and norms are noise, including parameters that are initialised to zero and would not change the
    outputs: the tables of relative positions and LiFT's last layer.
    """
    for name, parameter in backbone.named_parameters():
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * (len(parameter) / parameter.numel()) ** 0.5)


def _annotated_images(settings: Settings) -> list[dict[str, Any]]:
    """A batch as from detectron2's mapper: noise with OBJECTS boxes, filled by their masks."""
    generator = torch.Generator().manual_seed(0)
    size = settings.image_size
    batch = []
    for _ in range(settings.batch):
        sides = size * (1 + 7 * torch.rand(OBJECTS, 2, generator=generator)) / 16
        corners = (size - sides) * torch.rand(OBJECTS, 2, generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=1)
        centres = torch.arange(size) + 0.5
        columns = (centres >= boxes[:, 0:1]) & (centres < boxes[:, 2:3])  # (OBJECTS, size)
        rows = (centres >= boxes[:, 1:2]) & (centres < boxes[:, 3:4])
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(OBJECTS, dtype=torch.int64)
        instances.gt_masks = BitMasks(rows[:, :, None] & columns[:, None, :])
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "height": size, "width": size, "instances": instances})
    return batch
