"""Stopping a flow run: a cancellation, a signal or a time limit lets the stage save, then tells Prefect why.

Stages catch SIGTERM in the main thread, save what they have and raise `Interrupted`. Tasks are called in the
flow's own thread for that reason.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment

from eridiff.errors import Interrupted


@contextmanager
def orderly_stop(time_limit_s: float | None) -> Iterator[None]:
    """Turns a stage's `Interrupted` into the state that fits.

    Under a worker Prefect's own signal goes on, so that a cancelled run ends as Cancelled and any other as
    Crashed; in a process of one's own the error goes on to whoever called the flow.

    Args:
        time_limit_s: seconds after which the run saves and stops by itself; None sets no limit.

    Raises:
        TimeoutError: the time limit was reached; Prefect's state is then TimedOut.
    """
    reached = threading.Event()
    timer = threading.Timer(time_limit_s, _ask_to_stop, [reached]) if time_limit_s is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    except (Interrupted, TerminationSignal) as error:
        if reached.is_set():
            raise TimeoutError(
                f"Stopped after {time_limit_s:g} s; what was finished is saved: run it again to go on."
            ) from error
        if isinstance(error, Interrupted) and deployment.id is not None:
            raise TerminationSignal(signal.SIGTERM) from error
        raise
    finally:
        if timer is not None:
            timer.cancel()


def _ask_to_stop(reached: threading.Event) -> None:
    reached.set()
    os.kill(os.getpid(), signal.SIGTERM)
