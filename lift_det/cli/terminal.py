"""What a subcommand's user sees of detectron2's log: warnings and errors. The rest goes to the log file."""

from __future__ import annotations

import sys


def keep_terminal_clear(output: str | None = None) -> None:
    """Sets detectron2's loggers up so that the terminal is left to progress bars and results.

    Call it before ``detectron2.engine.default_setup``, which then finds the loggers as they are.

    Args:
        output: folder of the log file, as ``default_setup`` names it; None writes none.
    """
    import logging

    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    # the calls of default_setup, which are cached by their arguments
    loggers = [setup_logger(output, distributed_rank=comm.get_rank(), name="fvcore")]
    loggers.append(setup_logger(output, distributed_rank=comm.get_rank()))
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.setLevel(logging.WARNING)
