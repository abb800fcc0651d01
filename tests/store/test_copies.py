from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.store.copies import Copies

SIZE = 100
HOLD = """
import sys, time
from pathlib import Path
from eridiff.store.copies import Copies
with Copies(Path(sys.argv[1]), 250).opened("a", lambda: 100, lambda path: path.write_bytes(bytes(100))):
    print("held", flush=True)
    time.sleep(60)
"""


def fetched(copies: Copies, name: str) -> memoryview:
    return copies.mapped(name, lambda: SIZE, lambda path: path.write_bytes(name.encode() * SIZE))


def names(copies: Copies) -> set[str]:
    return {path.name for path in copies.folder.iterdir() if not path.name.startswith(".")}


def bytes_on_disk(folder: Path) -> int:
    """While nothing is evicted, so that it is all there at once; by inode, since a file may be renamed."""
    sizes = {}
    with (folder / ".room").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def make_older(copies: Copies) -> None:
    """Sets everything back by a second: file systems' clocks are too coarse for a test."""
    for path in copies.folder.iterdir():
        past = path.stat().st_mtime_ns - 1_000_000_000
        os.utime(path, ns=(past, past))


def test_a_copy_is_fetched_once(tmp_path: Path) -> None:
    copies, fetches = Copies(tmp_path, 1000), []

    def fetch(path: Path) -> None:
        fetches.append(path)
        path.write_bytes(bytes(SIZE))

    for _ in range(3):
        with copies.opened("a", lambda: SIZE, fetch) as file:
            assert file.read() == bytes(SIZE)
    assert len(fetches) == 1


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 2 * SIZE)
    for name in ("a", "b", "a", "c", "b"):
        fetched(copies, name)
        assert copies.nbytes() <= copies.max_bytes
        make_older(copies)
    assert names(copies) == {"b", "c"}


def test_what_is_mapped_is_not_evicted_until_its_last_view_is_gone(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 2 * SIZE)
    view = fetched(copies, "a")[10:20]  # the slice alone keeps the map, and the map the lock
    make_older(copies)
    for name in ("b", "c", "d"):
        fetched(copies, name)
        make_older(copies)
    assert names(copies) == {"a", "d"}
    assert bytes(view) == b"a" * 10
    del view
    fetched(copies, "e")
    assert names(copies) == {"d", "e"}


def test_a_bound_that_is_too_small_is_told(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 2 * SIZE)
    held = [fetched(copies, name) for name in ("a", "b")]
    with pytest.raises(StoreError, match=r"too small[\s\S]*storage\.cache_gb"):
        fetched(copies, "c")
    assert len(held) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", ".room"}


def test_locks_and_reservations_of_a_killed_process_vanish(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 250)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        make_older(copies)
        fetched(copies, "b")
        make_older(copies)
        fetched(copies, "c")
        assert names(copies) == {"a", "c"}  # b is younger, but nobody reads it
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    (tmp_path / ".x.r200.tmp").write_bytes(b"")  # of a process killed while it fetched
    fetched(copies, "d")
    assert ".x.r200.tmp" not in {path.name for path in tmp_path.iterdir()}
    assert copies.nbytes() <= 250


def test_one_fetches_and_the_others_wait(tmp_path: Path) -> None:
    copies, fetches, begun = Copies(tmp_path, 1000), [], threading.Barrier(4)

    def slowly(path: Path) -> None:
        fetches.append(path)
        path.write_bytes(bytes(10))
        time.sleep(0.2)
        path.write_bytes(bytes(SIZE))

    def read() -> int:
        begun.wait()
        return len(copies.mapped("a", lambda: SIZE, slowly))

    with ThreadPoolExecutor(4) as threads:
        sizes = [future.result() for future in [threads.submit(read) for _ in range(4)]]
    assert sizes == [SIZE] * 4
    assert len(fetches) == 1


def test_many_readers_of_a_small_cache_read_the_right_bytes_within_the_bound(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 5 * SIZE)
    seen: list[int] = []

    def read(number: int) -> None:
        name = "abcdefgh"[number % 8]
        assert bytes(fetched(copies, name)) == name.encode() * SIZE
        seen.append(bytes_on_disk(copies.folder))

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(read, number) for number in range(200)]:
            future.result()
    assert max(seen) <= copies.max_bytes


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_failed_fetch_leaves_nothing(tmp_path: Path, fault: type[BaseException]) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise fault

    copies = Copies(tmp_path, 1000)
    with pytest.raises(fault):
        copies.mapped("a", lambda: SIZE, fail)
    assert names(copies) == set()
    assert copies.nbytes() == 0
    assert bytes(fetched(copies, "a")) == b"a" * SIZE


def made(copies: Copies, name: str, nbytes: int) -> Callable[[], None]:
    def make() -> None:
        with copies.made(name) as path:
            path.write_bytes(bytes(nbytes))

    return make


def test_a_file_made_here_is_a_copy_where_there_is_room(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 2 * SIZE)
    for name in ("a", "b", "c"):
        made(copies, name, SIZE)()
        make_older(copies)
    assert names(copies) == {"b", "c"}
    made(copies, "large", 3 * SIZE)()
    assert names(copies) == {"b", "c"}
    assert copies.forget("c")
    assert not copies.forget("c")
    assert copies.nbytes() == SIZE
