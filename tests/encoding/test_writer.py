from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eridiff.encoding.writer import PartWriter
from eridiff.errors import StoreError
from eridiff.store.parts import Item, StoredTensor, TensorStore


def batch(*numbers: int) -> dict[str, Item | str]:
    return {f"{n}": Item(f"{n}", {"x": StoredTensor("U8", (1,), bytes([n]))}) for n in numbers}


def num_parts(store: TensorStore) -> int:
    return len(list((store.folder / "parts").glob("*.parquet")))


def test_parts_hold_whole_batches_and_nothing_is_left(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "space")
    with PartWriter(store, part_items=4) as writer:
        for start in range(0, 11, 3):
            writer.add(batch(*range(start, min(start + 3, 11))))
    assert num_parts(store) == 2
    assert store.missing(str(n) for n in range(11)) == []
    assert writer.bytes_written == store.nbytes()


def test_items_that_cannot_be_made_are_noted_after_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, order = TensorStore(tmp_path, "space"), []
    append, quarantine = store.append, store.quarantine

    def noted_append(items: Any, **options: Any) -> Any:
        order.append("part")
        return append(items, **options)

    def noted_quarantine(key: str, reason: str) -> None:
        order.append("mark")
        quarantine(key, reason)

    monkeypatch.setattr(store, "append", noted_append)
    monkeypatch.setattr(store, "quarantine", noted_quarantine)
    with PartWriter(store, part_items=3) as writer:
        writer.add(batch(1) | {"2": "not finite"})
        assert order == []
        writer.add(batch(3))
    assert order == ["part", "mark"]
    assert store.quarantined() == {"2": "not finite"}
    assert store.keys() == {"1", "3"}


def test_only_rejects_make_no_part(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "space")
    with PartWriter(store, part_items=3) as writer:
        writer.add({"2": "not finite"})
    assert store.quarantined() == {"2": "not finite"}
    assert writer.bytes_written == store.nbytes() == 0


def test_an_error_on_its_way_is_not_covered_up(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "space")

    def fail() -> None:
        with PartWriter(store, part_items=3) as writer:
            writer.add(batch(1, 2, 3))
            writer.add(batch(4))
            raise RuntimeError("encoder broke")

    with pytest.raises(RuntimeError, match="encoder broke"):
        fail()
    assert store.keys() == {"1", "2", "3"}


def test_a_full_disk_stops_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore(tmp_path, "space")

    def full(_items: Any, **_options: Any) -> None:
        raise StoreError("The disk is full: nothing was written.")

    monkeypatch.setattr(store, "append", full)

    def work() -> None:
        with PartWriter(store, part_items=1) as writer:
            writer.add(batch(1))
            writer.add(batch(2))

    with pytest.raises(StoreError, match="disk is full"):
        work()
    assert store.keys() == frozenset()
