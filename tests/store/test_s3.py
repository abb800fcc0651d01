"""The store on a server that speaks S3, with processes that write at once and processes that are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.store.parts import TensorStore
from eridiff.store.paths import path_at, sizes_in
from eridiff.store.remote import RemotePath
from tests.s3 import BUCKET, CREDENTIALS, Server, s3_server
from tests.store import writer_process

SCRIPT = Path(writer_process.__file__)
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as started:
        yield started


@pytest.fixture
def root(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    """An empty prefix."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return at(server, f"s3://{BUCKET}/{uuid.uuid4().hex}", tmp_path)


def at(server: Server, url: str, cache: Path) -> RemotePath:
    place = path_at(url, cache=cache, max_bytes=100_000, options={"endpoint_url": server.url})
    assert isinstance(place, RemotePath)
    return place


def start(server: Server, root: RemotePath, cache: Path, first: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(root), str(first), str(count), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, env={**server.environment, "PYTHONPATH": str(ROOT)})


def assert_holds(root: RemotePath, count: int) -> None:
    store = TensorStore(root, "space")
    wanted = [f"item-{number}" for number in range(count)]
    reader = store.open(wanted)
    for number, key in enumerate(wanted):
        assert bytes(reader.get(key)["x"].data) == bytes(writer_process.item(number).tensors["x"].data)
    assert store.verify() == []


def test_writers_need_no_lock(server: Server, root: RemotePath, tmp_path: Path) -> None:
    spans = [(0, 40), (20, 40)]  # some items are written by both of them
    writers = [start(server, root, tmp_path / f"cache-{first}", first, count) for first, count in spans]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert_holds(root, 60)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_harms_nothing(
    server: Server, root: RemotePath, tmp_path: Path
) -> None:
    chance = random.Random(3)
    for _ in range(4):
        before = sizes_in(root / "space" / "parts")
        writer = start(server, root, tmp_path, 0, 400)
        while writer.poll() is None and sizes_in(root / "space" / "parts") == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        writer.kill()
        writer.wait()
        store = TensorStore(root, "space")
        reader = store.open()
        for key in sorted(store.keys()):
            reader.get(key)
        assert store.verify() == []
    assert start(server, root, tmp_path, 0, 400).wait() == 0
    assert_holds(root, 400)


def test_an_upload_in_parts_that_never_ended_is_not_there(root: RemotePath) -> None:
    path = root / "space" / "parts" / f"{'0' * 32}.safetensors"
    bucket, _, key = str(path.path).partition("/")
    upload = root.storage.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    root.storage.call_s3(
        "upload_part", Bucket=bucket, Key=key, PartNumber=1, UploadId=upload["UploadId"], Body=b"half"
    )
    assert sizes_in(path.parent) == {}
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.mapped()


def test_a_file_larger_than_one_request_comes_back_whole(root: RemotePath) -> None:
    data = random.Random(1).randbytes(7 * 2**20)
    path = root / "large.bin"
    path.storage.pipe_file(str(path.path), data, chunksize=5 * 2**20)
    large = RemotePath(path.storage, path.path, type(path.copies)(path.copies.folder, 10**8))
    assert bytes(large.mapped()) == data


def test_another_writers_file_is_seen_at_once(server: Server, root: RemotePath, tmp_path: Path) -> None:
    other = at(server, str(root), tmp_path / "other")
    assert sizes_in(root) == {}
    (other / "a.json").write_bytes(b"{}")
    assert sizes_in(root) == {"a.json": 2}
    (other / "a.json").write_bytes(b"[1]")
    assert (root / "a.json").read_bytes() == b"[1]"
    (root / "a.json").unlink()
    assert sizes_in(other) == {}


def test_a_bucket_that_is_not_there_is_told(server: Server, root: RemotePath, tmp_path: Path) -> None:
    absent = at(server, "s3://no-such-bucket/prefix", tmp_path)
    assert sizes_in(absent) == {}
    with pytest.raises(StoreError, match="no such bucket"):
        (absent / "a.json").write_bytes(b"{}")
