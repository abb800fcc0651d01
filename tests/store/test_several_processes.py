"""Processes that write one store at once, and processes that are killed while writing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eridiff.store.parts import TensorStore
from tests.store import writer_process

SCRIPT = Path(writer_process.__file__)
ROOT = SCRIPT.parents[2]


def start(root: Path, first: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(root), str(first), str(count)]
    return subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def assert_holds(root: Path, count: int) -> None:
    store = TensorStore(root, "space")
    wanted = [f"item-{number}" for number in range(count)]
    assert store.missing(wanted) == []
    reader = store.open(wanted)
    for number, key in enumerate(wanted):
        tensor = reader.get(key)["x"]
        assert bytes(tensor.data) == bytes(writer_process.item(number).tensors["x"].data)
    assert store.verify() == []


def test_writers_need_no_lock(tmp_path: Path) -> None:
    spans = [(0, 120), (60, 120), (0, 180)]  # each item is written by two or three of them
    writers = [start(tmp_path, *span) for span in spans]
    readable = 0
    while any(writer.poll() is None for writer in writers):
        store = TensorStore(tmp_path, "space")
        reader = store.open()
        keys = store.keys()
        assert len(keys) >= readable
        readable = len(keys)
        for key in keys & frozenset(f"item-{number}" for number in range(0, 180, 17)):
            if key in reader:
                number = int(key.partition("-")[2])
                wanted = writer_process.item(number).tensors["x"].data
                assert bytes(reader.get(key)["x"].data) == bytes(wanted)
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert_holds(tmp_path, 180)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_harms_nothing(tmp_path: Path) -> None:
    chance = random.Random(7)
    count, kills = 2000, 0
    while True:
        writer = start(tmp_path, 0, count)
        if kills == 20:
            assert writer.wait() == 0
            break
        wait_for_first_write(writer, tmp_path)
        time.sleep(chance.uniform(0, 0.05))
        writer.kill()
        kills += writer.wait() != 0
        store = TensorStore(tmp_path, "space")
        reader = store.open()
        for key in sorted(store.keys()):
            reader.get(key)
    assert_holds(tmp_path, count)
    left = TensorStore(tmp_path, "space")
    left.remove_abandoned(older_than_s=-1)
    names = {path.stem for path in (tmp_path / "space" / "parts").iterdir()}
    for name in names:
        for suffix in (".parquet", ".safetensors"):
            assert (tmp_path / "space" / "parts" / f"{name}{suffix}").exists()
    assert_holds(tmp_path, count)


def wait_for_first_write(writer: subprocess.Popen[bytes], root: Path) -> None:
    """Waits until the process has changed something, so that kills do not all fall into its imports."""
    before = listing(root)
    while writer.poll() is None and listing(root) == before:
        time.sleep(0.002)


def listing(root: Path) -> set[str]:
    return {path.name for path in (root / "space" / "parts").glob("*")}
