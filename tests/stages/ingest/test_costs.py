"""What a second run costs after a change."""

from __future__ import annotations

from pathlib import Path

from eridiff.images.shards import read_images
from eridiff.recipe import Recipe
from eridiff.store.snapshots import diff
from stages import ingest
from stages.dataset import current_snapshot, workspace
from tests.stages.ingest.folder import add, everything, jpeg, make_recipe, write


def test_a_second_run_looks_at_states_only(recipe: Recipe, reads: list[str], packs: list[str]) -> None:
    assert ingest.plan(recipe).missing == 24
    first = ingest.run(recipe)
    before = everything(recipe.storage.data)
    reads.clear(), packs.clear()
    assert ingest.plan(recipe).complete
    second = ingest.run(recipe)
    assert (second.done, second.reused, second.bytes_written) == (0, 24, 0)
    assert reads == packs == []
    assert second.outputs == first.outputs
    assert everything(recipe.storage.data) == before


def test_a_plan_touches_nothing(recipe: Recipe) -> None:
    planned = ingest.plan(recipe)
    assert planned.bytes_to_write > 0
    assert planned.details == {"images to read": 24, "captions to read": 24}
    assert not recipe.storage.data.exists()


def test_one_more_image_costs_one(recipe: Recipe, images: Path, reads: list[str], packs: list[str]) -> None:
    ingest.run(recipe)
    before = current_snapshot(recipe)
    reads.clear(), packs.clear()
    add(images, "new", 99)
    assert ingest.plan(recipe).missing == 1
    report = ingest.run(recipe)
    assert (report.done, report.reused) == (1, 24)
    assert sorted(reads) == ["new.jpg", "new.txt"]
    changes = diff(before, current_snapshot(recipe))
    assert (len(changes.added), changes.edited, changes.removed) == (1, (), ())
    by_name = {sample.shard for sample in current_snapshot(recipe).samples}
    assert len(packs) <= 2
    assert {path.name for path in workspace(recipe).images.iterdir()} == by_name


def test_an_edited_caption_costs_one(
    recipe: Recipe, images: Path, reads: list[str], packs: list[str]
) -> None:
    ingest.run(recipe)
    reads.clear(), packs.clear()
    write(images / "00.txt", b"another thing")
    report = ingest.run(recipe)
    assert (report.done, report.reused) == (1, 23)
    assert reads == ["00.txt"]
    assert len(packs) == 1


def test_edited_pixels_cost_one(recipe: Recipe, images: Path, reads: list[str]) -> None:
    ingest.run(recipe)
    reads.clear()
    write(images / "00.jpg", jpeg(1000))
    report = ingest.run(recipe)
    assert (report.done, report.reused) == (1, 23)
    assert reads == ["00.jpg"]


def test_a_renamed_image_is_no_new_sample(recipe: Recipe, images: Path, packs: list[str]) -> None:
    ingest.run(recipe)
    before = current_snapshot(recipe)
    packs.clear()
    for ending in ("jpg", "txt"):
        (images / f"00.{ending}").rename(images / "below" / f"renamed.{ending}")
    report = ingest.run(recipe)
    after = current_snapshot(recipe)
    assert (report.done, packs, after.id) == (0, [], before.id)
    assert any(sample.source.endswith("below/renamed.jpg") for sample in after.samples)


def test_a_removed_image_costs_no_reading(recipe: Recipe, images: Path, reads: list[str]) -> None:
    ingest.run(recipe)
    reads.clear()
    (images / "00.jpg").unlink()
    assert ingest.plan(recipe).details["removed"] == 1
    report = ingest.run(recipe)
    assert (report.done, report.reused, reads) == (0, 23, [])
    assert len(current_snapshot(recipe).samples) == 23


def test_the_recipe_changes_samples_not_shards(
    tmp_path: Path, recipe: Recipe, reads: list[str], packs: list[str]
) -> None:
    ingest.run(recipe)
    reads.clear(), packs.clear()
    changed = make_recipe(
        tmp_path, trigger_word="sks", dataset={"resolution": 96, "num_repeats": 3, "flip_x": True}
    )
    report = ingest.run(changed)
    assert (report.done, report.bytes_written, reads, packs) == (24, 0, [], [])
    sample = current_snapshot(changed).samples[0]
    assert (sample.repeats, sample.flip, sample.captions[0][:5]) == (3, True, "sks, ")
    assert current_snapshot(recipe).samples[0].repeats == 1


def test_superseded_shards_go_once_no_dataset_names_them(
    tmp_path: Path, recipe: Recipe, images: Path
) -> None:
    other = make_recipe(tmp_path, trigger_word="sks")
    ingest.run(recipe)
    ingest.run(other)
    shards = {path.name for path in workspace(recipe).images.iterdir()}
    write(images / "00.txt", b"another thing")
    ingest.run(recipe)
    assert len({path.name for path in workspace(recipe).images.iterdir()}) == len(shards) + 1
    list(read_images(workspace(other).images, current_snapshot(other).samples))
    ingest.run(other)
    assert len({path.name for path in workspace(recipe).images.iterdir()}) == len(shards)


def test_missing_shards_are_made_again(recipe: Recipe) -> None:
    ingest.run(recipe)
    before = everything(recipe.storage.data)
    first, second, *_ = sorted(workspace(recipe).images.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-512])
    planned = ingest.plan(recipe)
    assert planned.missing > 0
    assert ingest.run(recipe).done == planned.missing
    assert everything(recipe.storage.data) == before


def test_a_damaged_snapshot_is_made_again(recipe: Recipe) -> None:
    snapshot = Path(ingest.run(recipe).outputs["snapshot"])
    before = everything(recipe.storage.data)
    snapshot.write_bytes(b"torn")
    ingest.run(recipe)
    assert everything(recipe.storage.data) == before
