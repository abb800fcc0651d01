"""What is told when a file cannot be written or removed, by real permissions and by what others would say."""

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
from eridiff.store.files import atomic_path, remove_abandoned, write_atomic, write_json
from eridiff.store.garbage import Garbage
from eridiff.store.garbage import remove as remove_garbage
from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.store.paths import move, path_at
from eridiff.store.paths import remove as remove_path
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
        (errno.ENOSPC, r"disk is full[\s\S]*more than 4 bytes"),
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


def test_what_fitted_on_a_full_disk_is_not_said_to_be_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(bytes(100))
            raise OSError(errno.ENOSPC, "No space left on device")

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
    with pytest.raises(StoreError) as caught:
        fill()
    assert (caught.value.found, caught.value.wanted) == ("100 bytes free", "more than 100 bytes")


NO_FOLDERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_bytes(b""),
    "a link to nowhere": lambda path: path.symlink_to(path.parent / "gone"),
}


@pytest.mark.parametrize("kind", NO_FOLDERS)
@pytest.mark.parametrize("below", [".", "new", "new/newer"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, below: str, kind: str) -> None:
    there = tmp_path / "there"
    NO_FOLDERS[kind](there)
    with pytest.raises(StoreError, match="file stands where a folder") as caught:
        write_atomic(there / below / "a.bin", b"data")
    assert caught.value.found == f"{there} is no folder"
    for address in (there / below, f"file://{there / below}"):
        with pytest.raises(StoreError, match="file stands where a folder"):
            path_at(address, cache=tmp_path, max_bytes=1, options={})


def test_a_folder_that_cannot_be_made_is_told() -> None:
    with pytest.raises(StoreError, match=r"cannot be made here[\s\S]*/proc/absent[\s\S]*another folder"):
        write_atomic(Path("/proc/absent/inner/a.bin"), b"data")


@pytest.mark.parametrize("absent", ["beside.png", "other/below.png"])
def test_a_file_that_is_not_there_to_be_read_stays_one(tmp_path: Path, absent: str) -> None:
    def copying() -> None:
        with atomic_path(tmp_path / "copy.bin") as temporary:
            temporary.write_bytes((tmp_path / absent).read_bytes())

    with pytest.raises(FileNotFoundError, match=absent):
        copying()


def test_a_file_that_must_not_be_there_yet_stays_one(tmp_path: Path) -> None:
    (tmp_path / "once").touch()

    def claim() -> None:
        with atomic_path(tmp_path / "a.bin"):
            (tmp_path / "once").touch(exist_ok=False)

    with pytest.raises(FileExistsError, match="once"):
        claim()


REMOVERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: remove_path(folder / ".a.1.tmp"),
    "a folder": remove_path,
    "garbage": lambda folder: remove_garbage([Garbage("run", "", (folder,))]),
    "what was abandoned": lambda folder: remove_abandoned(folder, older_than_s=-1),
}


@pytest.mark.parametrize("what", REMOVERS)
def test_what_may_not_be_removed_is_told(forbidden: Path, what: str) -> None:
    (forbidden / ".a.1.tmp").touch()
    with without_privileges(), pytest.raises(StoreError, match="cannot be removed") as caught:
        REMOVERS[what](forbidden)
    assert str(caught.value.where).startswith(str(forbidden))
    assert caught.value.exit_code == 4
    assert [path.name for path in forbidden.iterdir()] == [".a.1.tmp"]


def test_what_lies_on_a_read_only_disk_is_not_removed_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(StoreError, match=r"cannot be removed[\s\S]*Read-only[\s\S]*mount the disk"):
        remove_path(tmp_path)


def test_a_file_is_not_moved_where_writing_is_forbidden(tmp_path: Path, forbidden: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    with without_privileges(), pytest.raises(StoreError, match="not allowed"):
        move(path, forbidden / "aside")
    assert path.exists()
    with pytest.raises(FileNotFoundError):
        move(tmp_path / "absent", tmp_path / "aside")


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    assert cannot_write(OSError(errno.EIO, "Input/output error"), tmp_path / "a", 1) is None
