"""One job at a time on a GPU: a lock file a device, kept by the kernel: a killed job frees it at once.

Orchestrators have limits of their own, which a command line does not ask. The file is locked by every stage
before it puts a model on a CUDA device; CPU work takes no lock.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eridiff.cards import visible
from eridiff.locks import held

FOLDER_VARIABLE = "ERIDIFF_LOCKS"
"""Environment variable: the folder of lock files; by default one in the machine's temporary folder."""


@contextmanager
def device_lock(device: str, *, poll_s: float = 1.0) -> Iterator[None]:
    """Waits until no other job holds `device`, and holds it until the block ends or the process dies.

    Of processes that torchrun started, the first of each machine takes all devices, in their order, so that
    two such jobs cannot hold half each; the others take none.

    Args:
        device: as torch writes it: `cuda`, `cuda:1`, `cpu`. Anything but CUDA needs no lock.
        poll_s: seconds between looks at a lock that another job holds.

    Raises:
        Interrupted: the process was asked to stop while it waited.
    """
    with ExitStack() as locks:
        for name in lock_names(device, os.environ):
            path = _folder() / f"{name}.lock"
            _share(path)
            locks.enter_context(held(path, f"device {name}", poll_s=poll_s))
        yield


def lock_names(device: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the locks that a job on `device` takes, by the machine's own numbering.

    Args:
        device: as torch writes it.
        environment: `CUDA_VISIBLE_DEVICES` renumbers devices; `LOCAL_RANK` and `LOCAL_WORLD_SIZE` are
            torchrun's.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ()
    size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if size > 1:
        first = environment.get("LOCAL_RANK", "0") == "0"
        return tuple(f"cuda-{_physical(index, environment)}" for index in range(size)) if first else ()
    return (f"cuda-{_physical(int(number or 0), environment)}",)


def _physical(index: int, environment: Mapping[str, str]) -> str:
    names = visible(environment) or []
    return names[index].replace("/", "-") if index < len(names) else str(index)


def _folder() -> Path:
    chosen = os.environ.get(FOLDER_VARIABLE)
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / "eridiff-locks"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # other users of the machine share the device, and so its lock
    return folder


def _share(path: Path) -> None:
    """Makes the file, if it is not there, such that all users of the machine can lock it."""
    if path.exists():
        return
    previous = os.umask(0)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    finally:
        os.umask(previous)
