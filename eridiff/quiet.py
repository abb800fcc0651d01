"""Messages of libraries that say nothing to a user, kept out of the log; all others get through."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsaid(logger: str, words: str) -> Iterator[None]:
    """Drops messages of that logger that contain `words`, while the block lasts."""
    speaker = logging.getLogger(logger)

    def keep(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    speaker.addFilter(keep)
    try:
        yield
    finally:
        speaker.removeFilter(keep)


@contextmanager
def without_loading_bar() -> Iterator[None]:
    """Transformers draws no bar for the tensors that it loads, while the block lasts."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
