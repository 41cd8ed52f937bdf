"""Set-up of trainings in a terminal."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def set_up(cfg: DictConfig, overrides: Sequence[str], resume: bool) -> argparse.Namespace:
    """Calls detectron2's ``default_setup``, with only warnings on the terminal; the full log is in the output folder.

    Returns:
        The arguments for :func:`lift_det.engine.do_train`.
    """
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    for name in ("fvcore", "detectron2"):
        # with the arguments of default_setup, which then gets this logger from a cache
        options = {"name": name} if name == "fvcore" else {}
        logger = setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), **options)
        for handler in logger.handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.setLevel(logging.WARNING)
    arguments = argparse.Namespace(config_file="", opts=overrides, eval_only=False, resume=resume)
    default_setup(cfg, arguments)
    return arguments
