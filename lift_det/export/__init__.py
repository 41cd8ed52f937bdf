"""Export: LiFT, a ViT with LiFT, a detector's backbone, or a detector, to ONNX and ``torch.export``, and compared."""

from .comparison import TOLERANCE, Comparison, ExportError
from .detector import export_detector
from .modules import BackboneModule, DetectorModule, ExportModule, FeaturesModule, LiFTModule
from .onnx_file import OPSET, check_onnx, export_onnx, require_onnx
from .program import check_program, export_program, trace
from .traceable import traceable

__all__ = [
    "OPSET",
    "TOLERANCE",
    "BackboneModule",
    "Comparison",
    "DetectorModule",
    "ExportError",
    "ExportModule",
    "FeaturesModule",
    "LiFTModule",
    "check_onnx",
    "check_program",
    "export_detector",
    "export_onnx",
    "export_program",
    "require_onnx",
    "trace",
    "traceable",
]
