"""Files below a URL, on fsspec's file system in memory: equal bytes, whole or absent, or an error told."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eridiff.errors import RecipeError, StoreError, Unreachable
from eridiff.store.files import atomic_path, read_json, remove_abandoned, write_atomic, write_json
from eridiff.store.garbage import InUse, find_garbage
from eridiff.store.garbage import remove as remove_garbage
from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.store.paths import contents, folders_in, mapped, opened_here, path_at, remove, sizes_in
from eridiff.store.remote import RemotePath
from eridiff.store.workspace import Workspace

ITEM_BYTES = 4096


def item(number: int) -> Item:
    return Item(f"item-{number}", {"x": StoredTensor("U8", (ITEM_BYTES,), bytes([number]) * ITEM_BYTES)})


def remote(cache: Path, url: str, **options: Any) -> RemotePath:
    place = path_at(url, cache=cache, max_bytes=100_000, options=options)
    assert isinstance(place, RemotePath)
    return place


@pytest.fixture
def root(tmp_path: Path) -> RemotePath:
    return remote(tmp_path, f"memory://bucket-{uuid.uuid4().hex}/prefix")


def copies(root: RemotePath) -> list[Path]:
    return [path for path in root.copies.folder.iterdir() if not path.name.startswith(".")]


def test_paths_are_named_as_on_disk(root: RemotePath) -> None:
    path = root / "a/b" / "c.txt"
    assert str(path) == f"{root}/a/b/c.txt"
    assert str(root).startswith("memory://")
    assert (path.name, path.stem, path.suffix) == ("c.txt", "c", ".txt")
    assert path.parent == root / "a" / "b"
    assert path.with_name("d.txt") == path.parent / "d.txt"
    assert path.with_suffix(".json") == path.parent / "c.json"
    assert sorted([root / "b", root / "a"]) == [root / "a", root / "b"]


def test_what_is_written_is_listed_and_read(root: RemotePath) -> None:
    assert sizes_in(root) == {}
    assert list(root.glob("*")) == []
    assert not root.exists()
    write_json(root / "one" / "a.json", {"a": 1})
    write_atomic(root / "one" / "b.bin", memoryview(b"12345"))
    assert read_json(root / "one" / "a.json", fix="") == {"a": 1}
    assert sizes_in(root / "one") == {"a.json": 13, "b.bin": 5}
    assert sizes_in(root) == {}
    assert [str(path) for path in folders_in(root)] == [f"{root}/one"]
    assert list(root.glob("*/*.json")) == [root / "one" / "a.json"]
    assert (root / "one" / "b.bin").stat().st_size == 5
    assert dict(contents([root / "one" / "b.bin"])) == {root / "one" / "b.bin": b"12345"}
    ((_, absent),) = contents([root / "absent"])
    assert isinstance(absent, FileNotFoundError)
    remove(root / "one" / "a.json")
    remove(root / "one" / "a.json")
    remove(root / "one")
    assert root.files() == []


def test_a_large_file_stays_as_a_copy_and_comes_back_when_that_is_gone(root: RemotePath) -> None:
    path = root / "large.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"x" * 1000)
    assert [copy.read_bytes() for copy in copies(root)] == [b"x" * 1000]
    assert path.forget()
    assert bytes(mapped(path)) == b"x" * 1000
    with opened_here(path) as here:
        assert here.read_bytes() == b"x" * 1000
    with pytest.raises(FileNotFoundError):
        mapped(root / "absent.bin")


def test_a_store_elsewhere_holds_the_same_bytes_as_one_on_disk(root: RemotePath, tmp_path: Path) -> None:
    here, there = TensorStore(tmp_path / "disk", "space"), TensorStore(root, "space")
    for first in (0, 3):
        items = [item(number) for number in range(first, first + 3)]
        on_disk, elsewhere = (store.part_files(store.append(items).id)[1] for store in (here, there))
        assert on_disk.read_bytes() == elsewhere.read_bytes()
    assert there.keys() == here.keys()
    assert there.missing(["item-9", "item-0"]) == ["item-9"]
    assert there.verify() == []
    assert there.nbytes() == here.nbytes()
    fresh = TensorStore(root, "space")
    for copy in copies(root):
        copy.unlink()
    for number in range(6):
        assert bytes(fresh.open().get(f"item-{number}")["x"].data) == bytes([number]) * ITEM_BYTES
    there.describe({"a": 1})
    there.quarantine("bad", "no image")
    assert fresh.quarantined() == {"bad": "no image"}


def test_a_small_cache_serves_a_store_that_is_larger(tmp_path: Path) -> None:
    root = path_at(
        f"memory://{uuid.uuid4().hex}", cache=tmp_path, max_bytes=3 * (ITEM_BYTES + 200), options={}
    )
    assert isinstance(root, RemotePath)
    store = TensorStore(root, "space")
    for number in range(8):
        store.append([item(number)])
    reader = store.open()
    for number in [*range(8), *reversed(range(8))]:
        assert bytes(reader.get(f"item-{number}")["x"].data) == bytes([number]) * ITEM_BYTES
        assert root.copies.nbytes() <= root.copies.max_bytes


def test_many_indexes_are_merged_elsewhere_too(root: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eridiff.store.partfolder._MERGE_AT_LEAST", 4)
    monkeypatch.setattr("eridiff.store.partfolder._LOOK_EVERY", 2)
    store = TensorStore(root, "space")
    for number in range(12):
        store.append([item(number)])
    assert len([name for name in sizes_in(store.folder) if name.startswith("merged-")]) == 1
    assert len(TensorStore(root, "space").keys()) == 12


def damage(path: RemotePath) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_file_elsewhere_is_marked_and_a_damaged_copy_only_fetched_anew(root: RemotePath) -> None:
    store = TensorStore(root, "space")
    part = store.append([item(1)]).id
    (copy,) = copies(root)
    copy.write_bytes(copy.read_bytes()[:-5] + b"wrong")
    assert bytes(store.open().get("item-1")["x"].data) == bytes([1]) * ITEM_BYTES
    assert store.missing(["item-1"]) == []

    damage(store.part_files(part)[1])
    assert store.missing(["item-1"]) == []  # the copy is whole
    assert [(found.part, found.key) for found in store.verify()] == [(part, "item-1")]
    assert store.missing(["item-1"]) == ["item-1"]
    store.append([item(1)])
    assert bytes(store.open().get("item-1")["x"].data) == bytes([1]) * ITEM_BYTES


def test_a_part_whose_data_is_gone_or_torn_is_moved_aside(root: RemotePath) -> None:
    store = TensorStore(root, "space")
    gone, torn = store.append([item(1)]).id, store.append([item(2)]).id
    store.part_files(gone)[1].unlink()
    store.part_files(torn)[1].write_bytes(b"short")
    assert store.missing(["item-1", "item-2"]) == ["item-1", "item-2"]
    assert {found.part for found in store.verify()} == {gone, torn}
    assert sizes_in(store.folder / "parts") == {}
    assert f"{torn}.safetensors" in sizes_in(store.folder / "damaged")


@pytest.mark.parametrize("method", ["pipe_file", "put_file", "mv"])
def test_an_upload_that_fails_leaves_nothing_that_is_trusted(
    root: RemotePath, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TensorStore(root, "space")
    store.append([item(0)])
    storage, real = root.storage, getattr(root.storage, method)

    def half(_self: object, *arguments: Any, **options: Any) -> None:
        if method == "pipe_file":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif method == "put_file":
            storage.pipe_file(arguments[1], Path(arguments[0]).read_bytes()[:100])
        raise ConnectionResetError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(type(storage), method, half)
        with pytest.raises(Unreachable, match="ConnectionResetError"):
            store.append([item(1)])
    fresh = TensorStore(root, "space")
    assert fresh.keys() == {"item-0"}
    assert fresh.verify() == []
    fresh.append([item(1)])
    assert fresh.keys() == {"item-0", "item-1"}


def test_what_a_killed_writer_put_aside_is_seen_by_nobody_and_removed_when_old(root: RemotePath) -> None:
    store = TensorStore(root, "space")
    store.append([item(0)])
    aside = store.folder / "parts" / ".half.safetensors.123456789abc.tmp"
    root.storage.pipe_file(str(aside.path), b"half")
    orphan = store.folder / "parts" / f"{'0' * 32}.safetensors"
    orphan.write_bytes(b"data whose index was never written")
    assert store.keys() == {"item-0"}
    assert store.verify() == []
    assert remove_abandoned(store.folder / "parts") == 0
    assert store.remove_abandoned(older_than_s=-1) == 2
    assert len(list((store.folder / "parts").glob("*"))) == 2
    assert not aside.exists()


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (PermissionError("Access Denied"), StoreError, r"refuses[\s\S]*credentials"),
        (TimeoutError("slow"), Unreachable, r"cannot be reached[\s\S]*TimeoutError: slow[\s\S]*same command"),
        (RuntimeError("no such endpoint"), Unreachable, "no such endpoint"),
    ],
)
def test_what_a_storage_says_is_told_and_is_no_damage(
    root: RemotePath, monkeypatch: pytest.MonkeyPatch, fault: Exception, kind: type[StoreError], message: str
) -> None:
    store = TensorStore(root, "space")
    store.append([item(0)])
    for copy in copies(root):
        copy.unlink()
    reader = store.open()

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    asked: list[Callable[[], Any]] = [
        lambda: reader.get("item-0"),
        lambda: store.append([item(1)]),
        lambda: TensorStore(root, "space").keys(),
    ]
    with monkeypatch.context() as broken:
        for method in ("get_file", "put_file", "pipe_file", "ls", "cat_file", "info"):
            broken.setattr(type(root.storage), method, fail)
        for ask in asked:
            with pytest.raises(kind, match=message) as caught:
                ask()
            assert str(caught.value.where).startswith(str(root))
    assert bytes(reader.get("item-0")["x"].data) == bytes(ITEM_BYTES)
    assert store.missing(["item-0"]) == []


def test_garbage_is_found_and_removed_elsewhere(root: RemotePath, tmp_path: Path) -> None:
    place = Workspace(root, tmp_path / "runs", tmp_path)
    for space in ("used", "unused"):
        TensorStore(place.latents, space).append([item(1)])
    write_atomic(place.images / "old.tar", b"images")
    used = InUse(frozenset(), frozenset({"used"}), frozenset())
    assert find_garbage(place, used, min_age_s=3600) == []
    found = find_garbage(place, used, min_age_s=0)
    assert [(one.what, str(one.paths[0].name)) for one in found][:2] == [
        ("image shard", "old.tar"),
        ("latents", "unused"),
    ]
    assert found[0].nbytes == 6
    assert found[1].nbytes == TensorStore(place.latents, "unused").nbytes()
    remove_garbage(found)
    assert root.files() == []
    remove_garbage(found)


def test_addresses_that_cannot_be_opened_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nosuch"):
        remote(tmp_path, "nosuch://bucket/prefix")
    with pytest.raises(RecipeError, match=r"names no bucket"):
        remote(tmp_path, "memory://")


def test_a_storage_whose_package_is_absent_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", absent)
    with pytest.raises(RecipeError, match=r'pip install "eridiff\[s3\]"'):
        remote(tmp_path, "s3://bucket/prefix")


def test_a_file_url_is_a_folder_on_disk(tmp_path: Path) -> None:
    assert path_at(f"file://{tmp_path}", cache=tmp_path, max_bytes=1, options={}) == tmp_path
