from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.store.files import (
    FileDigests,
    atomic_path,
    digest_bytes,
    digest_file,
    digest_json,
    remove_abandoned,
    write_atomic,
    write_json,
)
from tests.store.full_disk import largest_file


def settle(path: Path) -> None:
    """Makes a file old enough to be remembered."""
    old = time.time() - 60
    os.utime(path, (old, old))


def test_digests_are_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_bytes(b"abc") == digest_file(path) == wanted


def test_json_digests_ignore_the_order_of_keys_only() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 1.5})
    assert digest_json([1, 2]) != digest_json([2, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_without_a_json_text_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_json({"lr": value})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def stopped_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped_half_way()
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_path_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    write_atomic(path, b"old")
    with largest_file(1 << 16), pytest.raises(StoreError) as caught:
        write_atomic(path, bytes(1 << 20))
    assert caught.value.where == path
    assert "1048576" in str(caught.value)
    assert caught.value.exit_code == 4
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_space_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        write_atomic(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_keep_their_kind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_atomic(tmp_path / "folder", b"data")


def test_abandoned_files_go_when_they_are_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".a.123.tmp", tmp_path / ".b.123.tmp"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    settle(old)
    assert remove_abandoned(tmp_path, older_than_s=30) == 1
    assert list(tmp_path.iterdir()) == [young]


def test_files_are_digested_once_and_again_when_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "weights", tmp_path / "digests.json"
    path.write_bytes(b"one")
    settle(path)
    first = FileDigests(cache).digest(path)
    reads: list[Path] = []

    def counted(name: Path) -> str:
        reads.append(name)
        return digest_bytes(Path(name).read_bytes())

    monkeypatch.setattr("eridiff.store.files.digest_file", counted)
    assert FileDigests(cache).digest(path) == first == digest_bytes(b"one")
    assert reads == []
    path.write_bytes(b"two")
    assert FileDigests(cache).digest(path) == digest_bytes(b"two")
    assert reads == [path]


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path) -> None:
    path, cache = tmp_path / "weights", tmp_path / "digests.json"
    path.write_bytes(b"one")
    status = path.stat()
    digests = FileDigests(cache)
    assert digests.digest(path) == digest_bytes(b"one")
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, time and inode
    assert digests.digest(path) == digest_bytes(b"two")


def test_two_processes_share_what_they_learn(tmp_path: Path) -> None:
    cache = tmp_path / "digests.json"
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
        settle(path)
    one, other = FileDigests(cache), FileDigests(cache)
    one.digest(paths[0])
    other.digest(paths[1])
    assert all(str(path) in cache.read_text() for path in paths)


def test_a_damaged_cache_of_digests_is_made_again(tmp_path: Path) -> None:
    path, cache = tmp_path / "weights", tmp_path / "digests.json"
    path.write_bytes(b"one")
    settle(path)
    cache.write_text('{"half": ')
    assert FileDigests(cache).digest(path) == digest_bytes(b"one")
    assert str(path) in cache.read_text()


def read_only(_path: Path, _data: bytes) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def lost(_path: Path, _data: bytes) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("failing", [read_only, lost])
def test_digests_are_told_where_they_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[[Path, bytes], None]
) -> None:
    path, cache = tmp_path / "weights", tmp_path / "digests.json"
    path.write_bytes(b"one")
    settle(path)
    monkeypatch.setattr(Path, "write_bytes", failing)
    digests = FileDigests(cache)
    assert digests.digest(path) == digest_bytes(b"one")
    monkeypatch.setattr("eridiff.store.files.digest_file", pytest.fail)
    assert digests.digest(path) == digest_bytes(b"one")  # remembered here all the same
    assert not cache.exists()


def test_a_cache_of_digests_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    settle(path)
    for cache in (path / "digests.json", tmp_path):  # below a file, and a folder
        assert FileDigests(cache).digest(path) == digest_bytes(b"one")
