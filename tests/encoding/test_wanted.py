from __future__ import annotations

from pathlib import Path

import pytest

from eridiff.encoding.wanted import (
    negative_prompt,
    of_part,
    prompts_of,
    sample_prompts,
    usable_samples,
    wanted_captions,
    wanted_latents,
)
from eridiff.errors import RecipeError
from eridiff.store.snapshots import Snapshot, text_key
from tests.encoding.world import World, recipe_for


def test_each_distinct_text_is_wanted_once(world: World) -> None:
    wanted = wanted_captions(world.recipe, world.snapshot)
    texts = {"caption 0", "caption 1", "caption 2", "", "a sample prompt", "a negative prompt"}
    assert set(wanted.values()) == texts
    assert all(text_key(caption) == key for key, caption in wanted.items())
    assert set(wanted_captions(world.recipe, None).values()) == prompts_of(world.recipe)


def test_equal_shapes_lie_together(world: World) -> None:
    jobs = [*wanted_latents(world.snapshot).values()]
    shapes = [(job.sample.bucket_width, job.sample.bucket_height) for job in jobs]
    runs = [shape for number, shape in enumerate(shapes) if number == 0 or shapes[number - 1] != shape]
    assert len(runs) == len(set(shapes)) > 1


def test_copies_of_an_image_are_one_latent(world: World) -> None:
    from dataclasses import replace

    first = world.snapshot.samples[0]
    copy = replace(first, sample_id=f"{first.sample_id}.1", source="copy.png", captions=("other",))
    twice = Snapshot((*world.snapshot.samples, copy))
    assert wanted_latents(twice).keys() == wanted_latents(world.snapshot).keys()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_share_the_work_whatever_is_done(count: int) -> None:
    keys = [f"key {number}" for number in range(200)]
    parts = [of_part(keys, (index, count)) for index in range(1, count + 1)]
    assert sorted(key for part in parts for key in part) == sorted(keys)
    assert min(map(len, parts)) > 200 / count / 2
    assert of_part(keys[50:], (1, count)) == [key for key in parts[0] if key in keys[50:]]


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0)])
def test_there_is_no_such_part(part: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="part"):
        of_part(["a"], part)


def test_prompts_say_the_trigger_word(tmp_path: Path) -> None:
    prompts = {"prompts": ["a cat, [trigger]", "a dog"], "neg": "not [trigger]"}
    recipe = recipe_for(tmp_path, "flux", sample=prompts, trigger_word="in mystyle")
    assert sample_prompts(recipe) == ("a cat, in mystyle", "a dog")
    assert negative_prompt(recipe) == "not in mystyle"
    with pytest.raises(RecipeError, match="no trigger word"):
        sample_prompts(recipe_for(tmp_path, "flux", sample=prompts))


def test_what_is_quarantined_is_not_trained_on(world: World) -> None:
    samples = world.snapshot.samples
    assert usable_samples(samples, {}, {}) == samples
    mirrored = {samples[0].latent_key(True): "not finite"}
    assert usable_samples(samples, mirrored, {}) == samples[1:]
    caption = samples[0].captions[0]
    left = usable_samples(samples, {}, {text_key(caption): "not finite"})
    assert left == tuple(sample for sample in samples if sample.captions != (caption,))


def test_a_sample_keeps_its_other_captions(world: World) -> None:
    from dataclasses import replace

    sample = replace(world.snapshot.samples[0], captions=("one", "two"))
    (left,) = usable_samples([sample], {}, {text_key("one"): "not finite"})
    assert left.captions == ("two",)
