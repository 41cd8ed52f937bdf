"""What benchmark_model.py compares: a part of a config's model, and the same part of detectron2's stock ViTDet."""

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

# lift_det is imported where it is needed, so that its memory is not the stock side's.

PARTS = ("model", "backbone", "features", "net")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OBJECTS = 10


class Settings(NamedTuple):
    """One side: its config, and what is run of it and how. A dtype other than fp32 is autocast's."""

    config: str
    overrides: tuple[str, ...]
    part: str
    train: bool
    image_size: int
    batch: int
    dtype: str
    device: str


def our_config(name: str, overrides: Sequence[str], image_size: int) -> DictConfig:
    """A LazyConfig of lift_det's, by name or path, for images of one size and without files of weights.

    Raises:
        ValueError: a yacs config.
    """
    from lift_det import config

    cfg = config.load(name)
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{name} is no LazyConfig (.py).")
    backbone = cfg.model.backbone
    for part in (backbone.net, backbone.get("lift")):
        if part is not None and "checkpoint" in part:
            part.checkpoint = ""
        if part is not None and "pretrained" in part:
            part.pretrained = False
    backbone.square_pad = image_size
    return LazyConfig.apply_overrides(cfg, list(overrides))


def stock_net(cfg: DictConfig) -> dict[str, Any]:
    """The arguments of detectron2's ViT that make it as large as the config's, or none if that is another kind."""
    from lift_det.modeling import ViT as OurViT

    net = cfg.model.backbone.net
    if net._target_ is not OurViT:
        return {}
    arguments = OmegaConf.to_container(net, resolve=True)
    ours_alone = ("_target_", "checkpoint", "use_act_checkpoint")  # the last needs fairscale upstream
    return {name: value for name, value in arguments.items() if name not in ours_alone}


def build_ours(settings: Settings) -> Pass:
    """A part of the config's model."""
    cfg = our_config(settings.config, settings.overrides, settings.image_size)
    return _build(cfg.model, settings, cfg.model.backbone.input_scale)


def build_stock(net: dict[str, Any], settings: Settings) -> Pass:
    """A part of detectron2's ViTDet; ``net`` are arguments of its ViT in place of the stock config's."""
    cfg = model_zoo.get_config(settings.config)
    if net:
        cfg.model.backbone.net = {"_target_": ViT, **net}
    cfg.model.backbone.square_pad = settings.image_size
    return _build(LazyConfig.apply_overrides(cfg, list(settings.overrides)).model, settings, 1.0)


class Pass:
    """Called, it runs its part once: forward without gradients, or forward and backward."""

    def __init__(
        self, module: nn.Module, forward: Callable[[], Any], settings: Settings, vit: nn.Module, seen: int
    ) -> None:
        """
        Args:
            module: what is trained.
            forward: gives the detector's losses or detections, or a dict of feature maps.
            vit: the ViT in it.
            seen: side of the image as the ViT sees it, in pixels.
        """
        self._vit = vit
        self._seen = seen
        self.module = module.train(settings.train)
        self._forward = forward
        self._settings = settings
        self._gradients: list[Tensor] = []

    def __call__(self) -> None:
        if not self._settings.train:
            with torch.no_grad():
                self._cast_forward(self._settings.dtype)
            return
        self.module.zero_grad(set_to_none=True)
        with EventStorage():  # the detector's heads log there
            outputs = list(self._cast_forward(self._settings.dtype).values())
        if not all(output.requires_grad for output in outputs):
            raise RuntimeError("There is nothing to train in this part: it is frozen.")
        if self._settings.part == "model":
            sum(outputs).backward()
            return
        # noise, not a loss: the sums of a normalised map have a gradient of zero
        self._gradients = self._gradients or [torch.randn_like(output) for output in outputs]
        torch.autograd.backward(outputs, self._gradients)

    def parameter_names(self) -> list[str]:
        return sorted(name for name, _ in self.module.named_parameters())

    def token_map(self) -> tuple[int, int, int]:
        """Images, side of the map of tokens, channels: for lift_det's ViTs. detectron2's does not know its sizes."""
        vit = self._vit
        return self._settings.batch, self._seen // vit.patch_size, vit.embed_dim

    def outputs(self, dtype: str) -> dict[str, Any]:
        """The feature maps, as fp32 arrays."""
        with torch.no_grad():
            return {name: value.float().cpu().numpy() for name, value in self._cast_forward(dtype).items()}

    def _cast_forward(self, dtype: str) -> Any:
        with torch.autocast(self._settings.device.split(":")[0], dtype=DTYPES[dtype], enabled=dtype != "fp32"):
            return self._forward()


def _build(model_config: DictConfig, settings: Settings, input_scale: float) -> Pass:
    torch.manual_seed(0)
    size, part = settings.image_size, settings.part
    seen = round(size * input_scale)
    model = instantiate(model_config if part == "model" else model_config.backbone).to(settings.device)
    backbone = model.backbone if part == "model" else model
    _seed_weights(backbone)
    if part == "model":
        _find_the_first_class(model)
        images = _annotated_images(settings)
        return Pass(model, lambda: model(images), settings, backbone.net, seen)
    image = torch.randn(settings.batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(settings.device)
    if part == "backbone":
        module, forward = backbone, lambda: backbone(image)
    elif part == "features" and getattr(backbone, "lift", None) is not None:
        module, forward = backbone, lambda: {"features": backbone.forward_features(image)[1]}
    else:
        image = F.interpolate(image, size=(seen, seen), mode="bilinear") if seen != size else image
        module, forward = backbone.net, lambda: backbone.net(image)
    return Pass(module, forward, settings, backbone.net, seen)


def _seed_weights(backbone: nn.Module) -> None:
    """The same weights wherever a parameter has the same name and shape.

    Biases and norms stay as they begin. Everything else is noise, what begins at zero too: the tables of relative
    positions and LiFT's last layer would otherwise change nothing in the outputs.
    """
    for name, parameter in backbone.named_parameters():
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * (len(parameter) / parameter.numel()) ** 0.5)


def _find_the_first_class(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            module.cls_score.bias.data[0] = 8.0  # a score of 0.97 beside 80 logits near zero


def _annotated_images(settings: Settings) -> list[dict[str, Any]]:
    """A batch as detectron2's mapper makes it: noise, with OBJECTS boxes whose masks fill them."""
    generator = torch.Generator().manual_seed(0)
    size = settings.image_size
    batch = []
    for _ in range(settings.batch):
        sides = size * (1 + 7 * torch.rand(OBJECTS, 2, generator=generator)) / 16
        corners = (size - sides) * torch.rand(OBJECTS, 2, generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=1)
        places = torch.arange(size) + 0.5
        columns = (places >= boxes[:, 0:1]) & (places < boxes[:, 2:3])  # (OBJECTS, size)
        rows = (places >= boxes[:, 1:2]) & (places < boxes[:, 3:4])
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(OBJECTS, dtype=torch.int64)
        instances.gt_masks = BitMasks(rows[:, :, None] & columns[:, None, :])
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "height": size, "width": size, "instances": instances})
    return batch
