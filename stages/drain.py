"""Ending a worker so that its runs save first, by the server's own API.

A Prefect worker that gets SIGTERM ends at once and takes its runs with it, which then stay Running for ever.
Here its runs are cancelled first: each saves a checkpoint and says so, and only then the worker is ended.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

logger = logging.getLogger("eridiff")

_BUSY = 503
"""What the server answers while its database is locked."""
ACTIVE = ["PENDING", "RUNNING", "CANCELLING"]


def drain(url: str, worker: int, *, wait_s: float) -> int:
    """Cancels the runs of a worker on this machine, and waits until they have saved.

    Args:
        url: of the server's API.
        worker: its process id; its runs are processes below it.
        wait_s: how long to wait for them.

    Returns:
        How many runs were stopped; those that took too long are left to Prefect.

    Raises:
        OSError: the server does not answer.
    """
    runs = _active(url, worker)
    for run in runs:
        state = {"type": "CANCELLING", "message": "The worker was asked to stop."}
        call(url, f"/flow_runs/{run}/set_state", {"state": state})
    if runs:
        logger.info("%d runs save what they have", len(runs))
    end = time.monotonic() + wait_s
    while time.monotonic() < end and set(runs) & set(_active(url, worker)):
        time.sleep(0.3)
    return len(runs)


def call(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer of the server's API: to a GET, or to a POST of a body.

    Raises:
        OSError: there is none, or it is an error.
    """
    data = None if body is None else json.dumps(body).encode()
    for wait_s in (0.5, 1.0, 2.0, 4.0):
        try:
            return _answer(url + path, data)
        except HTTPError as error:
            with error:
                if error.code != _BUSY:
                    raise
        time.sleep(wait_s)
    return _answer(url + path, data)


def _answer(url: str, data: bytes | None) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def healthy(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return call(url, "/health") is True
    except (OSError, ValueError):
        return False


def _active(url: str, worker: int) -> list[str]:
    found = call(url, "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ACTIVE}}}})
    return [run["id"] for run in found if _is_below(worker, run["infrastructure_pid"] or "")]


def _is_below(ancestor: int, pid: str) -> bool:
    """Whether a process lives and descends from another, as Linux's /proc tells it."""
    while pid.isdigit() and int(pid) > 1:
        if int(pid) == ancestor:
            return True
        try:
            pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except FileNotFoundError:  # it ended, or runs elsewhere
            return False
    return False
