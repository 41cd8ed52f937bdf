"""LiFT (Suri et al., ECCV 2024) for detectron2. Importing it registers names in detectron2 and does nothing else."""

from .requirements_check import require_detectron2

require_detectron2()

from . import config, data, engine, evaluation, export, model_zoo, modeling, visualization  # noqa: E402
from .engine import Predictor  # noqa: E402
from .modeling import (  # noqa: E402
    BilinearUpsample,
    FeatureExtractor,
    LiFT,
    LiFTFeaturePyramid,
    LiFTPlus,
    TimmViT,
    ViT,
    add_lift_config,
    load_lift,
    save_lift,
)
from .version import __version__  # noqa: E402

__all__ = [
    "BilinearUpsample",
    "FeatureExtractor",
    "LiFT",
    "LiFTFeaturePyramid",
    "LiFTPlus",
    "Predictor",
    "TimmViT",
    "ViT",
    "__version__",
    "add_lift_config",
    "config",
    "data",
    "engine",
    "evaluation",
    "export",
    "load_lift",
    "model_zoo",
    "modeling",
    "save_lift",
    "visualization",
]
