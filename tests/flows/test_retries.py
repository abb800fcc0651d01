from __future__ import annotations

import pytest

from eridiff.errors import DataError, Interrupted, StoreError, Unreachable
from flows.retries import may_pass


@pytest.mark.parametrize("error", [OSError("I/O error"), TimeoutError(), Unreachable("no answer")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error", [DataError("bad"), StoreError("damaged"), Interrupted("stopped"), ValueError("wrong")]
)
def test_what_cannot_pass_is_not(error: Exception) -> None:
    assert not may_pass(error)
