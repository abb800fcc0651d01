from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eridiff.errors import DataError, StoreError
from eridiff.store.snapshots import (
    Quarantined,
    Sample,
    Snapshot,
    current,
    dataset_key,
    diff,
    sample_ids,
    save_current,
    text_key,
)


def sample(number: int, **changes: object) -> Sample:
    content = f"{number:064x}"
    made = Sample(
        sample_id=f"{content[-20:]}-512x768",
        content=content,
        captions=(f"caption {number}", "second"),
        width=1024,
        height=1536,
        resized_width=512,
        resized_height=768,
        crop_left=0,
        crop_top=0,
        bucket_width=512,
        bucket_height=768,
        flip=False,
        split="train",
        repeats=1,
        shard="one.tar",
        source=f"folder/{number}.jpg",
        dataset=0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_snapshot_comes_back_whole(tmp_path: Path) -> None:
    snapshot = Snapshot(
        (sample(2, split="holdout", flip=True), sample(1)), (Quarantined("bad.png", "it is cut short"),)
    )
    path = snapshot.save(tmp_path)
    again = Snapshot.load(path)
    assert again == snapshot
    assert path.stem == again.id == snapshot.id
    assert [s.source for s in again.train] == ["folder/1.jpg"]
    assert [s.source for s in again.holdout] == ["folder/2.jpg"]


def test_an_empty_snapshot_comes_back(tmp_path: Path) -> None:
    assert Snapshot.load(Snapshot(()).save(tmp_path)).samples == ()


def test_the_id_is_of_what_is_trained_on() -> None:
    before = Snapshot((sample(1), sample(2)))
    assert Snapshot((sample(2), sample(1))).id == before.id
    assert Snapshot((sample(1, source="renamed.jpg", shard="two.tar"), sample(2))).id == before.id
    for change in (
        {"captions": ("other",)},
        {"crop_left": 1},
        {"repeats": 2},
        {"split": "holdout"},
        {"flip": True},
    ):
        assert Snapshot((sample(1, **change), sample(2))).id != before.id


def test_ids_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Snapshot((sample(1), sample(1)))


def test_copies_of_an_image_get_numbers() -> None:
    assert sample_ids(["a", "b", "a", "a"]) == ["a", "b", "a.1", "a.2"]


def test_latent_keys_tell_pixels_apart_and_nothing_else() -> None:
    one = sample(1)
    renamed = replace(
        one, source="x.png", captions=("y",), shard="z", split="holdout", repeats=9, sample_id="q"
    )
    assert renamed.latent_key(False) == one.latent_key(False)
    others = [
        one.latent_key(True),
        *(
            replace(one, **{name: 7}).latent_key(False)
            for name in (
                "resized_width",
                "resized_height",
                "crop_left",
                "crop_top",
                "bucket_width",
                "bucket_height",
            )
        ),
        replace(one, content="0" * 64).latent_key(False),
    ]
    assert len({one.latent_key(False), *others}) == len(others) + 1
    assert one.latent_keys() == (one.latent_key(False),)
    assert replace(one, flip=True).latent_keys() == (one.latent_key(False), one.latent_key(True))


def test_text_keys_are_of_the_exact_text() -> None:
    assert text_key("a cat") == text_key("a cat")
    assert len({text_key("a cat"), text_key("a cat "), text_key("A cat"), text_key(""), text_key("ü")}) == 5


def test_diff_says_what_was_added_edited_and_removed() -> None:
    before = Snapshot((sample(1), sample(2), sample(3), sample(4)))
    after = Snapshot(
        (
            sample(1, source="renamed.jpg"),
            sample(2, captions=("new words",)),
            sample(9, source="folder/3.jpg"),
            sample(10),
        )
    )
    found = diff(before, after)
    assert [s.source for s in found.added] == ["folder/10.jpg"]
    assert sorted(s.source for s in found.edited) == ["folder/2.jpg", "folder/3.jpg"]
    assert [s.source for s in found.removed] == ["folder/4.jpg"]
    assert diff(after, after) == diff(before, before)


def test_two_images_of_one_source_name_are_both_removed() -> None:
    before = Snapshot((sample(1, source="same"), sample(2, source="same", dataset=1)))
    assert len(diff(before, Snapshot(())).removed) == 2


def test_the_current_snapshot_of_a_dataset(tmp_path: Path) -> None:
    key = dataset_key({"datasets": ["a"]})
    with pytest.raises(DataError, match="not been ingested") as caught:
        current(tmp_path, key)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    save_current(tmp_path, key, Snapshot((sample(1),)))
    newer = Snapshot((sample(1), sample(2)))
    save_current(tmp_path, key, newer)
    assert current(tmp_path, key) == newer
    assert dataset_key({"datasets": ["b"]}) != key


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other rows", "pointer"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, harm: str) -> None:
    key = dataset_key({})
    path = save_current(tmp_path, key, Snapshot((sample(1), sample(2))))
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[10] ^= 0xFF
    elif harm == "cut":
        data = data[: len(data) // 2]
    elif harm == "empty":
        data.clear()
    elif harm == "other rows":
        data = bytearray(Snapshot((sample(1),)).save(tmp_path / "other").read_bytes())
    else:
        (path.parents[1] / "current.json").write_text("{")
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="cannot be read"):
        current(tmp_path, key)
