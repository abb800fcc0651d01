from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.store.files import digest_bytes
from eridiff.store.garbage import InUse, find_garbage, remove
from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.store.snapshots import Sample, Snapshot, save_current, text_key
from eridiff.store.workspace import Workspace

KEY = "0" * 64
SPACE = "a" * 32


def sample(name: str, caption: str, shard: str = "one.tar") -> Sample:
    return Sample(
        sample_id=name,
        content=digest_bytes(name.encode()),
        captions=(caption,),
        width=64,
        height=64,
        resized_width=64,
        resized_height=64,
        crop_left=0,
        crop_top=0,
        bucket_width=64,
        bucket_height=64,
        flip=False,
        split="train",
        repeats=1,
        shard=shard,
        source=f"{name}.png",
        dataset=0,
    )


def item(key: str) -> Item:
    return Item(key, {"value": StoredTensor("F32", (1,), b"\0\0\0\0")})


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "data", tmp_path / "runs")


def fill(place: Workspace, snapshot: Snapshot) -> None:
    """A part for each latent and each caption, and the shards."""
    for each in snapshot.samples:
        TensorStore(place.latents, SPACE).append([item(key) for key in each.latent_keys()])
        TensorStore(place.text, SPACE).append([item(text_key(caption)) for caption in each.captions])
        place.images.mkdir(parents=True, exist_ok=True)
        (place.images / each.shard).write_bytes(b"tar")
    save_current(place.datasets, KEY, snapshot)


def in_use(*snapshots: Snapshot, spaces: frozenset[str] = frozenset({SPACE})) -> InUse:
    return InUse(frozenset(snapshot.id for snapshot in snapshots), spaces, frozenset({""}))


def found(place: Workspace, used: InUse, *, min_age_s: float = 0) -> list[str]:
    return sorted(garbage.what for garbage in find_garbage(place, used, min_age_s=min_age_s))


def test_nothing_goes_that_a_snapshot_leads_to(place: Workspace) -> None:
    snapshot = Snapshot((sample("a", "a cat"), sample("b", "a dog")))
    fill(place, snapshot)
    assert found(place, in_use(snapshot)) == []


def test_an_edited_caption_leaves_one_text_part_and_a_snapshot(place: Workspace) -> None:
    before = Snapshot((sample("a", "a cat"), sample("b", "a dog")))
    fill(place, before)
    after = Snapshot((sample("a", "one cat"), sample("b", "a dog")))
    TensorStore(place.text, SPACE).append([item(text_key("one cat"))])
    save_current(place.datasets, KEY, after)
    assert found(place, in_use(before, after)) == []
    assert found(place, in_use(after)) == ["snapshot", "text"]


def test_a_removed_image_leaves_its_latents_text_and_shard(place: Workspace) -> None:
    before = Snapshot((sample("a", "a cat"), sample("b", "a dog", shard="two.tar")))
    fill(place, before)
    after = Snapshot((sample("a", "a cat"),))
    save_current(place.datasets, KEY, after)
    assert found(place, in_use(after)) == ["image shard", "latents", "snapshot", "text"]
    remove(find_garbage(place, in_use(after), min_age_s=0))
    assert found(place, in_use(after)) == []
    assert TensorStore(place.latents, SPACE).keys() == set(after.samples[0].latent_keys())
    assert [path.name for path in place.images.iterdir()] == ["one.tar"]


def test_a_part_stays_while_any_item_of_it_is_needed(place: Workspace) -> None:
    snapshot = Snapshot((sample("a", "a cat"),))
    fill(place, snapshot)
    TensorStore(place.text, SPACE).append([item(text_key("a cat")), item(text_key("nobody's"))])
    assert found(place, in_use(snapshot)) == []


def test_prompts_are_needed_whatever_the_images(place: Workspace) -> None:
    snapshot = Snapshot((sample("a", "a cat"),))
    fill(place, snapshot)
    TensorStore(place.text, SPACE).append([item(text_key("a prompt"))])
    used = in_use(snapshot)
    assert found(place, used) == ["text"]
    assert found(place, dataclasses.replace(used, prompts=frozenset({"a prompt"}))) == []


def test_a_space_that_nobody_means_goes_whole(place: Workspace) -> None:
    snapshot = Snapshot((sample("a", "a cat"),))
    fill(place, snapshot)
    used = in_use(snapshot, spaces=frozenset())
    assert found(place, used) == ["latents", "text"]
    remove(find_garbage(place, used, min_age_s=0))
    assert not list(place.latents.iterdir())


def test_what_is_young_stays(place: Workspace) -> None:
    fill(place, Snapshot((sample("a", "a cat"),)))
    nobody = InUse(frozenset(), frozenset(), frozenset())
    assert found(place, nobody, min_age_s=3600) == []
    for path in place.data.rglob("*"):
        os.utime(path, (1, 1))
    assert len(found(place, nobody, min_age_s=3600)) == 4


def test_nothing_goes_while_a_snapshot_in_use_is_damaged(place: Workspace) -> None:
    snapshot = Snapshot((sample("a", "a cat"),))
    fill(place, snapshot)
    (path,) = place.datasets.glob("*/snapshots/*.parquet")
    path.write_bytes(b"torn")
    with pytest.raises(StoreError, match="snapshot cannot be read"):
        find_garbage(place, in_use(snapshot), min_age_s=0)
