"""Setting a training up for a terminal: its log goes to the file, warnings and errors to the user as well."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def set_up(cfg: DictConfig, opts: Sequence[str], resume: bool) -> argparse.Namespace:
    """detectron2's ``default_setup``, with the terminal left to progress bars and results.

    Args:
        cfg: its ``train.output_dir`` is where the log file is written.
        opts: the overrides on the command line, for the log.
        resume: go on from the last checkpoint.

    Returns:
        The arguments that :func:`lift_det.engine.do_train` takes.
    """
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    # the calls of default_setup, which are cached by their arguments: it finds the loggers as they are here
    loggers = [setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="fvcore")]
    loggers.append(setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank()))
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.setLevel(logging.WARNING)
    arguments = argparse.Namespace(config_file="", opts=opts, eval_only=False, resume=resume)
    default_setup(cfg, arguments)
    return arguments
