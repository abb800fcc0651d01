"""The stages' own log lines and warnings, in the log of the Prefect run that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

SOURCES = ("eridiff", "py.warnings")


@contextmanager
def stage_logs() -> Iterator[None]:
    """Sends what stages log, from INFO on, and Python's warnings to Prefect until the block ends.

    Inside another such block there is nothing left to do: a task's lines go to the task's own log anyway.
    """
    loggers = [logging.getLogger(name) for name in SOURCES]
    if any(isinstance(handler, APILogHandler) for logger in loggers for handler in logger.handlers):
        yield
        return
    handler = APILogHandler(level=logging.INFO)
    levels = [logger.level for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        logging.captureWarnings(False)
