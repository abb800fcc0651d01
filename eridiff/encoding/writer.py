"""Encoded items to the store in parts, while the next ones are being encoded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from eridiff.store.parts import Item, TensorStore


class PartWriter:
    """Collects finished items and writes them as parts, in a thread of its own, one part at a time.

    On leaving, what was collected is written, unless an error is on its way. Items that cannot be made are
    noted after the part that they would have been in, so that a restart finds the same batches.

    Args:
        store: where the parts go.
        part_items: a part is written once at least this many items are there.
    """

    def __init__(self, store: TensorStore, *, part_items: int) -> None:
        self.store, self.part_items = store, part_items
        self.bytes_written = 0
        self._items: list[Item] = []
        self._reasons: dict[str, str] = {}
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "parts")
        self._pending: Future[int] | None = None

    def __enter__(self) -> PartWriter:
        """Starts the clock of the first part."""
        self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes what is left, and waits until it is on disk."""
        try:
            if kind is None:
                self.flush()
                self._wait()
        finally:
            self._thread.shutdown(wait=True)

    def add(self, items: Mapping[str, Item | str]) -> None:
        """Takes a finished batch: for each key the item, or the reason why there is none."""
        for key, outcome in items.items():
            if isinstance(outcome, Item):
                self._items.append(outcome)
            else:
                self._reasons[key] = outcome
        if len(self._items) + len(self._reasons) >= self.part_items:
            self.flush()

    def flush(self) -> None:
        """Hands everything collected to the writing thread, once that has finished the part before."""
        self._wait()
        items, reasons = self._items, self._reasons
        self._items, self._reasons = [], {}
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self._pending = self._thread.submit(self._write, items, reasons, seconds)

    def _write(self, items: list[Item], reasons: Mapping[str, str], seconds: float) -> int:
        written = self.store.append(items, seconds=seconds).nbytes if items else 0
        for key, reason in reasons.items():
            self.store.quarantine(key, reason)
        return written

    def _wait(self) -> None:
        if self._pending is not None:
            self.bytes_written += self._pending.result()
            self._pending = None
