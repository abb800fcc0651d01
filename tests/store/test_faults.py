"""What is told when a file cannot be written, by real permissions and by what other systems would say."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.locks import held
from eridiff.store.copies import Copies
from eridiff.store.faults import cannot_write
from eridiff.store.files import atomic_path, write_atomic, write_json
from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.store.runs import Run
from eridiff.store.snapshots import Snapshot

NOBODY = 65_534


@contextmanager
def without_privileges() -> Iterator[None]:
    """As a user whom permissions bind."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that may be looked into, not written to; outside pytest's own, which only root enters."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def append(folder: Path) -> None:
    TensorStore(folder, "space").append([Item("a", {"x": StoredTensor("U8", (1,), b"1")})])


def hold(folder: Path) -> None:
    with held(folder / "training.lock", "the run"):
        pytest.fail("a file was made in a folder that forbids it")


def fetch(folder: Path) -> None:
    Copies(folder / "copies", 100).mapped("a", lambda: 1, lambda path: path.write_bytes(b"1"))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: write_atomic(folder / "a.bin", b"data"),
    "a file in a new folder": lambda folder: write_json(folder / "new" / "newer" / "a.json", {}),
    "a part": append,
    "a snapshot": lambda folder: Snapshot(()).save(folder),
    "a seal": lambda folder: Run(folder, "1").seal({}),
    "a lock": hold,
    "a copy": fetch,
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_forbidden_folder_is_named_with_its_owner_and_what_to_do(forbidden: Path, what: str) -> None:
    with without_privileges(), pytest.raises(StoreError) as caught:
        WRITERS[what](forbidden)
    said = str(caught.value)
    assert "not allowed" in said
    assert str(caught.value.where).startswith(str(forbidden))
    assert f"{forbidden} of user {os.getuid()}, mode 0555" in said
    assert "point storage at another folder" in said
    assert isinstance(caught.value.__cause__, PermissionError)
    assert list(forbidden.iterdir()) == []


def test_a_folder_that_may_not_even_be_entered_is_told(forbidden: Path) -> None:
    forbidden.chmod(0)
    with without_privileges(), pytest.raises(StoreError, match="not allowed"):
        write_atomic(forbidden / "inner" / "a.bin", b"data")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"disk is full[\s\S]*at least 4 bytes"),
        (errno.EDQUOT, r"quota is reached[\s\S]*4 bytes more[\s\S]*eridiff gc"),
        (errno.EROFS, r"read-only[\s\S]*mount it for writing"),
    ],
)
def test_what_other_disks_say_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(self: Path, _data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as failing:
        failing.setattr(Path, "write_bytes", fail)
        with pytest.raises(StoreError, match=message) as caught:
            write_atomic(path, b"data")
    assert caught.value.where == path
    assert caught.value.exit_code == 4
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_be_read_meanwhile_is_no_fault_of_the_place(
    tmp_path: Path, forbidden: Path
) -> None:
    def copying_a_secret() -> None:
        with atomic_path(tmp_path / "copy.bin"):
            raise PermissionError(errno.EACCES, "Permission denied", str(forbidden / "secret.png"))

    with pytest.raises(PermissionError, match=r"secret\.png"):
        copying_a_secret()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    assert cannot_write(OSError(errno.EIO, "Input/output error"), tmp_path / "a", 1) is None
