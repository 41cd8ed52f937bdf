"""What a config's model is and costs: parameters, multiplications, seconds and memory of one image."""

from __future__ import annotations

import dataclasses
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.nn import FlopCountAnalysis
from omegaconf import DictConfig
from torch import Tensor, nn

from lift_det import config
from lift_det.modeling import FeatureExtractor, LiFTFeaturePyramid

from .trained_model import build_without_weights

# What takes longer is run once after the warm-up: its seconds vary by little of themselves.
_SECONDS_OF_A_SINGLE_RUN = 20.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a config's model is, and what its backbone takes for one image.

    Attributes:
        parameters: of the whole model, heads included.
        trained: of these, those that get gradients.
        image_size: side of the square image in pixels: what the detector pads to, or what LiFT is trained on.
        seen_size: side of what the ViT sees of it.
        strides: of the levels, in pixels of the image: the pyramid's, or of the lifted map.
        pretrained: what a training starts from: a file, or timm's name of the weights; empty is random weights.
        gflops: of the backbone, in 10⁹ multiply-adds as fvcore counts them.
        seconds: of one forward pass of the backbone in fp32, without gradients: the median of ``runs``.
        runs: after one to warm up.
        peak_memory: bytes; on the CPU the peak resident set of the process, Python and libraries included, on a GPU
            what tensors took there.
        hardware: where, with how many threads and which torch.
    """

    parameters: int
    trained: int
    image_size: int
    seen_size: int
    strides: list[float]
    pretrained: str
    gflops: float
    seconds: float
    runs: int
    peak_memory: int
    hardware: str


def measure_config(name: str, device: str = "cpu", image_size: int | None = None, runs: int = 3) -> Measurement:
    """Measures a config with random weights: nothing is downloaded, no data set is needed.

    What runs is the backbone: ViT, LiFT and pyramid, or ViT and LiFT where the config trains LiFT. The heads behind it
    are counted among the parameters alone: their work depends on how many proposals and detections an image has, which
    random weights do not know. Attention is counted too, though fvcore by itself leaves it out.

    The peak of memory is the process's: for a figure of this config alone it has to be a fresh one.

    Args:
        name: of the model zoo, or a file.
        device: ``"cpu"`` or ``"cuda"``; threads are torch's.
        image_size: in pixels; None takes what the config pads to, or trains LiFT on.
        runs: passes after one to warm up; what takes longer than 20 seconds is run once.

    Raises:
        lift_det.config.ConfigNotFoundError: no such config.
        ValueError: a config of another kind of backbone, or one that does not say its images' size.
    """
    cfg = config.load(name)
    model = build_without_weights(cfg).eval()
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, (LiFTFeaturePyramid, FeatureExtractor)):
        raise ValueError(
            f"'{name}' has a {type(backbone).__name__}; measured are lift_det's LiFTFeaturePyramid and "
            "FeatureExtractor."
        )
    size = image_size or _image_size(cfg, name)
    facts = describe_model(model)
    with torch.no_grad():
        backbone.to(device)
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        warm_up = _seconds(lambda: backbone(images), device)
        runs = 1 if warm_up > _SECONDS_OF_A_SINGLE_RUN else runs
        seconds = statistics.median(_seconds(lambda: backbone(images), device) for _ in range(runs))
        peak = _peak_memory(device)
        # on the CPU, because fvcore traces, and cannot see into the Triton kernels; after the peak was read
        seen = round(size * getattr(backbone, "input_scale", 1))
        operations = count_multiply_adds(backbone.cpu(), seen)
    return Measurement(
        **facts,
        image_size=size,
        seen_size=seen,
        pretrained=pretrained_source(cfg),
        gflops=float(f"{operations / 1e9:.4g}"),
        seconds=float(f"{seconds:.3g}"),
        runs=runs,
        peak_memory=peak,
        hardware=describe_hardware(device),
    )


def describe_model(model: nn.Module) -> dict[str, Any]:
    """``parameters``, ``trained`` and ``strides`` of :class:`Measurement`; the model may be on the meta device."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "strides": [shape.stride for shape in model.backbone.output_shape().values()],
    }


def pretrained_source(cfg: DictConfig | CfgNode) -> str:
    """What a training of a config starts from, in a word: a file's name, or timm's name of the weights."""
    if isinstance(cfg, CfgNode):
        vit = cfg.MODEL.VIT
        sources = (cfg.MODEL.WEIGHTS, vit.CHECKPOINT, vit.TIMM_NAME if vit.PRETRAINED else "")
    else:
        net = cfg.model.net if "net" in cfg.model else cfg.model.backbone.net
        timm_name = net.name if net.get("pretrained") else ""
        sources = (cfg.train.init_checkpoint, net.get("checkpoint", ""), timm_name)
    source = next(filter(None, sources), "")
    return source.partition("?")[0].rpartition("/")[2]


def describe_hardware(device: str) -> str:
    """The device, threads, and the version of torch."""
    where = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name(device)
    return f"{where}, torch {torch.__version__}"


def count_multiply_adds(backbone: LiFTFeaturePyramid | FeatureExtractor, seen_size: int) -> int:
    """fvcore's count for one square image, with the attention that it does not know.

    fvcore counts matrix products, convolutions, normalisations and interpolation; a multiplication and an addition are
    one.

    Args:
        backbone: on the CPU, in evaluation mode.
        seen_size: side of the image that the ViT sees, in pixels.
    """
    module = _FromSeenImage(backbone) if isinstance(backbone, LiFTFeaturePyramid) else backbone
    analysis = FlopCountAnalysis(module, torch.zeros(1, 3, seen_size, seen_size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_operations)
    analysis.set_op_handle("lift_det::rel_pos_attention_blocked", _rel_pos_attention_operations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this way of tracing is old
        return int(analysis.total())


class _FromSeenImage(nn.Module):
    """The pyramid without its resizing of the image, which asks of sizes what a trace does not know."""

    def __init__(self, backbone: LiFTFeaturePyramid) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.backbone.net(images)[self.backbone.in_feature]
        if self.backbone.steps:
            features = self.backbone.lift.upsample(images, features, self.backbone.steps)
        return [stage(features) for stage in self.backbone.stages]


# fvcore gives these the values of the trace, in the order of the operator's arguments.


def _attention_operations(inputs: Sequence[Any], _outputs: Sequence[Any]) -> int:
    """q (…, Nq, d), k (…, Nk, d): the scores, and their product with the values."""
    q, k = (value.type().sizes() for value in inputs[:2])
    return 2 * prod(q) * k[-2]


def _rel_pos_attention_operations(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """And each query's products with the vectors of the rows and of the columns, (·, k_h, d) and (·, k_w, d)."""
    q, _, _, rows, columns = (value.type().sizes() for value in inputs[:5])
    return _attention_operations(inputs, outputs) + prod(q) * (rows[1] + columns[1])


def _image_size(cfg: DictConfig | CfgNode, name: str) -> int:
    if isinstance(cfg, CfgNode):
        size = cfg.MODEL.SIMPLE_FPN.SQUARE_PAD
    elif "backbone" in cfg.model:
        size = cfg.model.backbone.get("square_pad", 0)
    else:
        size = cfg.dataloader.test.dataset.image_size
    if not size:
        raise ValueError(f"'{name}' does not pad to a square (square_pad=0): say the images' size.")
    return size


def _seconds(run: Callable[[], Any], device: str) -> float:
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronise()
    begin = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - begin


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux is at least what the parent had in memory when it started this process.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
