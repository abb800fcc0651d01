from __future__ import annotations

import logging

import pytest

from stages import stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the one element."""
    now = [100.0]
    monkeypatch.setattr(stage.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_leaves_a_slow_start_out(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    meter = stage.Meter("train", total=2000, done=1000, bar=None)
    with caplog.at_level(logging.INFO, "eridiff"):
        clock[0] += 80  # compiles
        meter.advance(1, loss=0.5)
        for _ in range(20):
            clock[0] += 0.5
            meter.advance(1, loss=0.25)
    assert caplog.messages == [
        "train 1001/2000  79920 s left  0.0125/s  loss 0.5",
        "train 1011/2000  494 s left  2/s  loss 0.25",
        "train 1021/2000  490 s left  2/s  loss 0.25",
    ]


def test_the_last_item_is_always_told(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "eridiff"), stage.progress("images", 2, done=1) as meter:
        clock[0] += 1
        meter.advance()
    assert caplog.messages == ["images 2/2  0 s left  1/s"]


def test_the_rate_is_of_all_where_the_first_ones_come_at_once(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "eridiff"), stage.progress("reading", 96) as meter:
        clock[0] += 2
        for _ in range(96):
            meter.advance()
    assert caplog.messages == ["reading 96/96  0 s left  48/s"]


def test_large_numbers_are_written_out(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "eridiff"), stage.progress("reading", 81_000) as meter:
        clock[0] += 1
        meter.advance(81_000)
    assert caplog.messages == ["reading 81000/81000  0 s left  81,000/s"]
