"""Set-up of a training in a terminal, which shows only warnings, progress bars and results."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def set_up(cfg: DictConfig, overrides: Sequence[str], resume: bool) -> argparse.Namespace:
    """detectron2's ``default_setup`` with the log in ``train.output_dir`` only.

    Returns:
        The arguments of :func:`lift_det.engine.do_train`.
    """
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    for name in ("fvcore", "detectron2"):
        # as default_setup calls it, which then gets this logger from a cache
        options = {"name": name} if name == "fvcore" else {}
        logger = setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), **options)
        for handler in logger.handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.setLevel(logging.WARNING)
    arguments = argparse.Namespace(config_file="", opts=overrides, eval_only=False, resume=resume)
    default_setup(cfg, arguments)
    return arguments
