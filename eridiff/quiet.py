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
