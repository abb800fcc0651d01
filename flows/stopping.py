"""Stopping a flow run: a cancellation, a signal or a time limit lets the stage save, then tells Prefect why.

Stages catch SIGTERM in the main thread, save what they have and raise `Interrupted`. Tasks are called in the
flow's own thread for that reason.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

from eridiff.errors import Interrupted


def orderly(body: Callable[[], Any], *, time_limit_s: float | None) -> Any:
    """What `body` returns, or the state that fits a stage's `Interrupted`.

    Under a worker a cancelled run ends as Cancelled and one that got a signal as Crashed, both with what the
    stage said; in a process of one's own the error goes on to whoever called the flow.

    Args:
        body: calls tasks in this thread.
        time_limit_s: seconds after which the run saves and stops by itself; None sets no limit.

    Raises:
        TimeoutError: the time limit was reached; Prefect's state is then TimedOut.
    """
    reached = threading.Event()
    timer = threading.Timer(time_limit_s or 0, _ask_to_stop, [reached])
    timer.daemon = True
    if time_limit_s is not None:
        timer.start()
    try:
        return body()
    except (Interrupted, TerminationSignal) as error:
        if reached.is_set():
            raise TimeoutError(
                f"Stopped after {time_limit_s:g} s; what was finished is saved: run it again to go on."
            ) from error
        if isinstance(error, Interrupted) and deployment.id is not None:
            if _is_cancelling():
                return Cancelled(message=str(error))
            raise TerminationSignal(signal.SIGTERM) from error
        raise
    finally:
        timer.cancel()


def _ask_to_stop(reached: threading.Event) -> None:
    reached.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _is_cancelling() -> bool:
    """Whether somebody cancelled this run: the worker's signal alone does not say so."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    return state is not None and state.type == StateType.CANCELLING
