"""The stages' own log lines and warnings, in the log of the Prefect run that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

SOURCES = ("eridiff", "py.warnings")


@contextmanager
def stage_logs() -> Iterator[None]:
    """Sends what stages log, from INFO on, and Python's warnings to Prefect until the block ends."""
    handler = APILogHandler(level=logging.INFO)
    loggers = [logging.getLogger(name) for name in SOURCES]
    added = [logger for logger in loggers if not any(isinstance(h, APILogHandler) for h in logger.handlers)]
    levels = [logger.level for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    for logger in added:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in added:
            logger.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        logging.captureWarnings(False)
