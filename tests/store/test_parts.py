from __future__ import annotations

import errno
import os
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from eridiff.errors import StoreError
from eridiff.store.catalog import part_id
from eridiff.store.parts import Item, StoredTensor, TensorStore
from tests.store.full_disk import largest_file


def floats(*values: float) -> StoredTensor:
    return StoredTensor("F32", (len(values),), np.array(values, "<f4").tobytes())


def item(number: int, *, value: float | None = None) -> Item:
    chosen = float(number if value is None else value)
    return Item(
        f"key-{number}",
        {"mean": floats(chosen, chosen + 1), "mask": StoredTensor("U8", (3,), bytes([1, 2, number % 256]))},
    )


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path, "space")


def contents(store: TensorStore) -> dict[str, dict[str, bytes]]:
    reader = store.open()
    keys = store.keys()
    return {key: {name: bytes(tensor.data) for name, tensor in reader.get(key).items()} for key in keys}


def data_files(store: TensorStore) -> list[Path]:
    return sorted((store.folder / "parts").glob("*.safetensors"))


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def test_items_come_back_as_they_went_in(store: TensorStore) -> None:
    store.append([item(1), item(2)])
    store.append([item(3)])
    again = TensorStore(store.root, store.space)
    assert again.keys() == {"key-1", "key-2", "key-3"}
    tensors = again.open().get("key-2")
    assert (tensors["mean"].dtype, tensors["mean"].shape) == ("F32", (2,))
    assert np.frombuffer(tensors["mean"].data, "<f4").tolist() == [2.0, 3.0]
    assert bytes(tensors["mask"].data) == b"\x01\x02\x02"


def test_missing_keeps_the_order_and_names_each_once(store: TensorStore) -> None:
    store.append([item(1)])
    assert store.missing(["key-9", "key-1", "key-3", "key-9"]) == ["key-9", "key-3"]


def test_a_store_that_was_never_written_is_empty(store: TensorStore) -> None:
    assert store.keys() == frozenset()
    assert store.missing(["a"]) == ["a"]
    assert store.nbytes() == 0
    assert store.quarantined() == {}
    assert not store.folder.exists()


def test_open_refuses_missing_keys(store: TensorStore) -> None:
    store.append([item(1)])
    with pytest.raises(StoreError, match="1 items are missing"):
        store.open(["key-1", "key-2"])


def test_any_safetensors_reader_reads_a_part(store: TensorStore) -> None:
    store.append([item(1), Item("odd", {"half": StoredTensor("BF16", (1,), b"\x80\x3f")})])
    (path,) = data_files(store)
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == {"key-1/mean", "key-1/mask", "odd/half"}
        assert file.get_tensor("key-1/mean").tolist() == [1.0, 2.0]
        assert file.metadata()["space"] == "space"


def test_two_writers_of_equal_items_do_no_harm(store: TensorStore) -> None:
    other = TensorStore(store.root, store.space)
    store.append([item(1), item(2)])
    other.append([item(2), item(3)])
    assert store.keys() == other.keys() == {"key-1", "key-2", "key-3"}
    assert bytes(store.open().get("key-2")["mean"].data) == bytes(item(2).tensors["mean"].data)


@pytest.mark.parametrize(
    "items",
    [
        [],
        [item(1), item(1)],
        [Item("a/b", {"x": floats(1)})],
        [Item("a", {"x/y": floats(1)})],
        [Item("a", {})],
    ],
)
def test_parts_that_make_no_sense_are_refused(store: TensorStore, items: list[Item]) -> None:
    with pytest.raises(ValueError, match=r"needs at least one|no '/'|must be distinct"):
        store.append(items)
    assert store.keys() == frozenset()


def test_a_flipped_byte_is_found_marked_and_made_again(store: TensorStore) -> None:
    store.append([item(1), item(2)])
    (path,) = data_files(store)
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("key-2/mean").tolist() == [2.0, 3.0]
    place = path.read_bytes().index(bytes(item(2).tensors["mean"].data))
    flip_byte(path, place)
    fresh = TensorStore(store.root, store.space)
    reader = fresh.open()
    reader.get("key-1")
    with pytest.raises(StoreError, match="damaged"):
        reader.get("key-2")
    assert fresh.missing(["key-1", "key-2"]) == ["key-2"]
    assert TensorStore(store.root, store.space).missing(["key-1", "key-2"]) == ["key-2"]
    fresh.append([item(2)])
    assert fresh.missing(["key-1", "key-2"]) == []
    assert bytes(fresh.open().get("key-2")["mean"].data) == bytes(item(2).tensors["mean"].data)
    assert fresh.verify() == []


def to_format_1(data: Path) -> Path:
    """Turns a part into one of format 1, whose index has no CRC-32, and returns its data file."""
    old = data.with_suffix(".parquet")
    table = pq.ParquetFile(old).read().drop_columns(["crc32"])
    pq.write_table(table, old)
    index = old.with_name(f"{part_id(old.read_bytes())}.parquet")
    old.rename(index)
    return data.rename(index.with_suffix(".safetensors"))


def test_parts_without_a_crc_are_read_and_proved_by_their_digest(store: TensorStore) -> None:
    store.append([item(1), item(2)])
    path = to_format_1(data_files(store)[0])
    fresh = TensorStore(store.root, store.space)
    fresh.append([item(3)])
    assert contents(fresh).keys() == {"key-1", "key-2", "key-3"}
    flip_byte(path, path.read_bytes().index(bytes(item(2).tensors["mean"].data)))
    with pytest.raises(StoreError, match=r"damaged: tensor mean .* has digest"):
        fresh.open().get("key-2")
    assert fresh.missing(["key-1", "key-2", "key-3"]) == ["key-2"]


def test_what_is_read_is_checked_once_and_quickly(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([item(1)])
    checked: list[int] = []

    def noted(data: memoryview) -> int:
        checked.append(len(data))
        return zlib.crc32(data)

    monkeypatch.setattr("eridiff.store.reader.zlib", SimpleNamespace(crc32=noted))
    monkeypatch.setattr("eridiff.store.reader.digest_bytes", None)
    reader = store.open()
    for _ in range(3):
        reader.get("key-1")
    assert sorted(checked) == [3, 8]


def test_verify_proves_by_digest(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append([item(1)])
    monkeypatch.setattr("eridiff.store.reader.zlib", None)
    assert store.verify() == []


def test_a_whole_copy_stands_in_for_a_damaged_one(store: TensorStore) -> None:
    store.append([item(1)])
    (first,) = data_files(store)
    store.append([item(1), item(2)])
    flip_byte(first, first.stat().st_size - 1)
    for _ in range(2):
        assert contents(TensorStore(store.root, store.space)).keys() == {"key-1", "key-2"}
    assert store.missing(["key-1"]) == []


def test_verify_finds_and_marks_damage(store: TensorStore) -> None:
    store.append([item(1), item(2)])
    (path,) = data_files(store)
    flip_byte(path, path.read_bytes().index(bytes(item(1).tensors["mean"].data)) + 3)
    seen: list[tuple[int, int]] = []
    (damage,) = store.verify(lambda done, total: seen.append((done, total)))
    assert (damage.part, damage.key) == (path.stem, "key-1")
    assert seen == [(1, 1)]
    assert store.missing(["key-1", "key-2"]) == ["key-1"]


def test_a_damaged_header_is_found_by_verify(store: TensorStore) -> None:
    store.append([item(1)])
    (path,) = data_files(store)
    flip_byte(path, path.read_bytes().index(b'"F32"') + 1)
    (damage,) = store.verify()
    assert "header" in damage.reason
    assert store.missing(["key-1"]) == ["key-1"]


@pytest.mark.parametrize("harm", ["index flipped", "index cut", "data cut", "data gone", "data longer"])
def test_a_broken_part_is_missing_and_set_aside(store: TensorStore, harm: str) -> None:
    store.append([item(1)])
    store.append([item(2)])
    data = data_files(store)[0]
    index = data.with_suffix(".parquet")
    lost = next(key for key in ("key-1", "key-2") if key.encode() in data.read_bytes())
    if harm == "index flipped":
        flip_byte(index, index.stat().st_size // 2)
    elif harm == "index cut":
        index.write_bytes(index.read_bytes()[:-9])
    elif harm == "data cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif harm == "data longer":
        data.write_bytes(data.read_bytes() + b"x")
    else:
        data.unlink()
    fresh = TensorStore(store.root, store.space)
    assert fresh.missing(["key-1", "key-2"]) == [lost]
    assert [(damage.part, damage.key) for damage in fresh.verify()] == [(data.stem, None)]
    assert fresh.verify() == []
    fresh.append([item(1), item(2)])
    assert contents(fresh).keys() == {"key-1", "key-2"}


def test_a_store_in_use_notices_a_part_that_vanishes(store: TensorStore) -> None:
    store.append([item(1)])
    assert store.missing(["key-1"]) == []
    data_files(store)[0].unlink()
    assert store.missing(["key-1"]) == ["key-1"]


def test_many_parts_open_through_a_merged_index(store: TensorStore) -> None:
    for number in range(100):
        store.append([item(number)])
    (merged,) = store.folder.glob("merged-*.arrow")
    whole = contents(TensorStore(store.root, store.space))
    assert whole.keys() == {f"key-{number}" for number in range(100)}
    flip_byte(merged, merged.stat().st_size // 2)
    assert contents(TensorStore(store.root, store.space)) == whole
    merged.unlink()
    assert contents(TensorStore(store.root, store.space)) == whole


def test_a_merged_index_does_not_revive_parts_that_are_gone(store: TensorStore) -> None:
    for number in range(100):
        store.append([item(number)])
    for path in data_files(store)[:10]:
        path.unlink()
    assert len(TensorStore(store.root, store.space).keys()) == 90


def test_a_reader_is_of_one_moment(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        store.append([item(number)])
    look, first = store._look, data_files(store)[0]

    def then_a_part_vanishes() -> object:
        seen = look()
        if first.exists():
            first.unlink()
            store.append([item(7)])
            look()
        return seen

    monkeypatch.setattr(store, "_look", then_a_part_vanishes)
    reader = store.open()
    for number in range(3):
        key = f"key-{number}"
        try:
            mean = reader.get(key)["mean"]
        except StoreError:
            assert store.missing([key]) == [key]
        else:
            assert bytes(mean.data) == bytes(item(number).tensors["mean"].data)


def test_quarantine_keeps_reasons(store: TensorStore) -> None:
    store.quarantine("key-7", "not finite")
    store.quarantine("key-7", "not finite at all")
    assert TensorStore(store.root, store.space).quarantined() == {"key-7": "not finite at all"}


def test_the_description_is_written_once(store: TensorStore) -> None:
    store.describe({"vae": "abc"})
    store.describe({"vae": "other"})
    assert "abc" in (store.folder / "space.json").read_text()


def test_statistics_say_what_is_not_finite(store: TensorStore) -> None:
    part = store.append([Item("a", {"x": floats(1, float("nan"), 3), "y": floats(-1, 2)})])
    rows = pq.ParquetFile(store.folder / "parts" / f"{part.id}.parquet").read().to_pylist()
    assert [row["finite"] for row in rows] == [False, True]
    assert (rows[1]["minimum"], rows[1]["maximum"], rows[1]["mean"]) == (-1.0, 2.0, 0.5)


def test_a_full_disk_leaves_nothing_to_be_trusted(store: TensorStore) -> None:
    store.append([item(1)])
    big = Item("big", {"x": StoredTensor("U8", (1 << 20,), bytes(1 << 20))})
    with largest_file(1 << 16), pytest.raises(StoreError, match="disk is full"):
        store.append([big])
    assert len(list((store.folder / "parts").iterdir())) == 2
    assert TensorStore(store.root, store.space).keys() == {"key-1"}
    store.append([big])
    assert store.missing(["big"]) == []


def test_a_disk_that_fills_before_the_index_leaves_nothing(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, calls = os.fsync, []

    def full_at_the_index(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the data file, its folder, then the index
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_index)
    with pytest.raises(StoreError, match="disk is full"):
        store.append([item(1)])
    assert list((store.folder / "parts").iterdir()) == []


@pytest.mark.slow
def test_a_hundred_thousand_items_open_in_about_a_second(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    each = {name: StoredTensor("F32", (0,), b"") for name in ("mean", "logvar")}
    keys = [f"{number:064x}-512x512" for number in range(100_000)]
    for start in range(0, len(keys), 100):
        store.append([Item(key, each) for key in keys[start : start + 100]])
    fresh = TensorStore(store.root, store.space)
    started = time.process_time()
    assert fresh.missing([*keys, "other"]) == ["other"]
    assert time.process_time() - started < 2
