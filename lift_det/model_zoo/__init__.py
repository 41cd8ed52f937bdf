"""The configs that come with lift_det, by name, from any folder: `lift_det.model_zoo.get_config("COCO/….py")`."""

from lift_det.config import ConfigNotFoundError, list_configs

from .measurements import measurement_table, read_measurements
from .model_zoo import get, get_config, get_config_file

__all__ = [
    "ConfigNotFoundError",
    "get",
    "get_config",
    "get_config_file",
    "list_configs",
    "measurement_table",
    "read_measurements",
]
