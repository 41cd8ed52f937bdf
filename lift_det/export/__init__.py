"""Export of LiFT, feature extractors, backbones and detectors to ONNX and ``torch.export``."""

from .detector import export_detector
from .files import OPSET, TOLERANCE, Comparison, ExportError, export_onnx, export_program, require_onnx, trace
from .modules import BackboneModule, ExportModule, FeaturesModule, LiFTModule
from .traceable import traceable

__all__ = [
    "OPSET",
    "TOLERANCE",
    "BackboneModule",
    "Comparison",
    "ExportError",
    "ExportModule",
    "FeaturesModule",
    "LiFTModule",
    "export_detector",
    "export_onnx",
    "export_program",
    "require_onnx",
    "trace",
    "traceable",
]
