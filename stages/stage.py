"""What all stages share at their edge: plan, report, progress on a terminal or in a log, and stopping."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("eridiff")
console = Console(stderr=True)
LOG_EVERY_S = 5.0
SLOW_START_S = 5.0
"""A first item that takes longer took loading or compiling, which says nothing of the rest."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage would do, found by looking only."""

    stage: str
    done: int
    missing: int
    quarantined: int = 0
    bytes_to_write: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.missing == 0


@dataclass(frozen=True)
class StageReport:
    """What a stage did: items made, found made already, and quarantined; and where the results lie."""

    stage: str
    done: int
    reused: int
    quarantined: int
    seconds: float
    bytes_written: int
    outputs: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self)

    def line(self) -> str:
        """The one line that ends every stage."""
        return (
            f"{self.stage}: {self.done} done, {self.reused} reused, {self.quarantined} quarantined, "
            f"{self.seconds:.1f} s, {human_bytes(self.bytes_written)} written"
        )


def human_bytes(count: float) -> str:
    """A number of bytes for people: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Meter:
    """A running count of finished items; `advance` moves the bar, or logs a line every few seconds.

    Args:
        label: what is counted.
        total: how many there are.
        done: how many of them were there before.
        bar: where they are shown; in the log, if nowhere.
    """

    def __init__(self, label: str, total: int, done: int, bar: Progress | None) -> None:
        self._label, self._total, self._bar = label, total, bar
        self._task: TaskID | None = None
        if bar is not None:
            self._task = bar.add_task(label, total=total, completed=done, fields="")
        self._count = self._before = done
        self._since = self._logged = time.monotonic()
        self._begun = False

    def advance(self, count: int = 1, **fields: float | int | str) -> None:
        """Adds `count` finished items and shows the rate and `fields` (a loss, bytes, ...) beside them."""
        now = time.monotonic()
        self._count += count
        rate = (self._count - self._before) / max(now - self._since, 1e-9)
        if not self._begun and now - self._since > SLOW_START_S:
            self._before, self._since = self._count, now
        self._begun = True
        told = {name: _short(value) for name, value in fields.items()}
        shown = "  ".join([f"{_short(rate)}/s", *(f"{name} {value}" for name, value in told.items())])
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, fields=shown)
            return
        if now - self._logged < LOG_EVERY_S and self._count < self._total:
            return
        self._logged = now
        left = (self._total - self._count) / rate if rate else float("inf")
        logger.info("%s %d/%d  %.0f s left  %s", self._label, self._count, self._total, left, shown)


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


@contextmanager
def progress(label: str, total: int, *, done: int = 0) -> Iterator[Meter]:
    """A meter over `total` items, of which `done` were there before: a bar on a terminal, else log lines.

    A terminal has room for one bar: threads that work side by side write lines.
    """
    if not console.is_terminal or threading.current_thread() is not threading.main_thread():
        yield Meter(label, total, done, None)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[fields]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Meter(label, total, done, bar)


class StopFlag:
    """True once somebody asked this process to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stopping() -> Iterator[StopFlag]:
    """A flag that SIGTERM and SIGINT set; a second signal has its usual effect.

    Outside the main thread signals cannot be caught: the flag then only stays false.
    """
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        flag.signal = number
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.getsignal(number)
            signal.signal(number, note)
    except ValueError:  # not the main thread
        previous.clear()
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
