from __future__ import annotations

import pytest
import torch

from eridiff.diffusion.randomness import generator
from eridiff.training.batches import Batches, Draws, geometry, step_batches
from eridiff.training.order import Draw, Order
from tests.training.conftest import CAPTIONS, World, make_sample

NO_DROPOUT = Draws(seed=5, caption_dropout=0.0, dropout_pooled=True)


def batches(world: World, draws: Draws = NO_DROPOUT) -> Batches:
    return Batches(world.family, world.cached, world.samples, draws)


def test_rows_are_joined_by_sample_id_whatever_their_place(world: World) -> None:
    maker = batches(world)
    draws = [Draw(sample.sample_id, 0) for sample in world.samples[:5]]
    together, backwards = maker.batch(3, draws), maker.batch(3, draws[::-1])
    for place, draw in enumerate(draws):
        alone = maker.batch(3, [draw])
        for batch, row in ((together, place), (backwards, len(draws) - 1 - place)):
            assert batch.sample_ids[row] == draw.sample_id
            assert torch.equal(batch.clean[row], alone.clean[0])
            assert torch.equal(batch.noise[row], alone.noise[0])
            assert torch.equal(batch.t[row], alone.t[0])
            assert torch.equal(batch.cond.text[row], alone.cond.text[0])
            assert torch.equal(batch.cond.geometry[row], alone.cond.geometry[0])


def test_a_row_is_the_samples_own_latents_and_caption(world: World) -> None:
    sample = next(s for s in world.samples if not s.flip and len(s.captions) == 1)
    row = batches(world).batch(0, [Draw(sample.sample_id, 0)])
    stored = world.cached.moments(sample, mirrored=False)
    noise = torch.randn(stored.mean.shape, generator=generator(5, "posterior", 0, sample.sample_id, 0))
    wanted = stored.mean + torch.exp(0.5 * stored.logvar) * noise - world.family.latent.shift
    torch.testing.assert_close(row.clean[0], wanted * world.family.latent.scale)
    assert torch.equal(row.cond.text[0], world.cached.prompt(sample.captions[0]).text)
    assert row.clean.dtype == row.noise.dtype == row.t.dtype == row.cond.geometry.dtype == torch.float32


def test_every_draw_is_new_each_time_a_sample_is_seen(world: World) -> None:
    maker, name = batches(world), world.samples[0].sample_id
    first = maker.batch(0, [Draw(name, 0)])
    for other in (maker.batch(1, [Draw(name, 0)]), maker.batch(0, [Draw(name, 1)])):
        assert not torch.equal(first.clean, other.clean)
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.t, other.t)


def test_mirrored_copies_are_drawn_about_half_the_time_and_only_where_allowed(any_world: World) -> None:
    maker = batches(any_world)
    for sample in any_world.samples[:2]:
        lefts = {False: 0, True: 0}
        for step in range(200):
            left = float(maker.batch(step, [Draw(sample.sample_id, 0)]).cond.geometry[0, 3])
            lefts[left != sample.crop_left] += 1
        assert (70 < lefts[True] < 130) == sample.flip
        assert (lefts[True] == 0) != sample.flip


def test_geometry_of_a_mirrored_sample_mirrors_the_crop() -> None:
    sample = make_sample(1, width=128, height=64)
    assert geometry(sample, mirrored=False).tolist() == [128, 276, 0, 4, 64, 128]
    assert geometry(sample, mirrored=True).tolist() == [128, 276, 0, 138 - 128 - 4, 64, 128]


def test_each_of_several_captions_is_drawn(any_world: World) -> None:
    sample = any_world.samples[0]
    assert len(sample.captions) == 2
    maker = batches(any_world)
    texts = [maker.batch(step, [Draw(sample.sample_id, 0)]).cond.text[0] for step in range(100)]
    for caption in sample.captions:
        wanted = any_world.cached.prompt(caption).text
        assert 25 < sum(torch.equal(text, wanted) for text in texts) < 75


@pytest.mark.parametrize("pooled", [False, True])
def test_dropout_swaps_in_the_empty_prompt_at_its_rate(any_world: World, pooled: bool) -> None:
    sample = any_world.samples[1]
    maker = batches(any_world, Draws(seed=5, caption_dropout=0.3, dropout_pooled=pooled))
    empty, own = any_world.cached.prompt(""), any_world.cached.prompt(CAPTIONS[2])
    assert sample.captions == (CAPTIONS[2],)
    dropped = 0
    for step in range(300):
        cond = maker.batch(step, [Draw(sample.sample_id, 0)]).cond
        is_empty = torch.equal(cond.text[0], empty.text)
        assert torch.equal(cond.text[0], (empty if is_empty else own).text)
        assert torch.equal(cond.pooled[0], (empty if is_empty and pooled else own).pooled)
        dropped += is_empty
    assert 60 < dropped < 120


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_devices_together_get_what_one_device_gets(any_world: World, num_ranks: int) -> None:
    maker, order = batches(any_world), Order(any_world.samples, 4, seed=5)

    def work(rank: int, size: int) -> list:
        return list(step_batches(maker, order, steps=range(6), accumulation=2, rank=rank, num_ranks=size))

    for whole, *parts in zip(work(0, 1), *(work(rank, num_ranks) for rank in range(num_ranks)), strict=True):
        rows = {}
        for part in parts:
            assert (part.step, part.epoch, part.num_samples) == (whole.step, whole.epoch, whole.num_samples)
            for batch in part.batches:
                rows |= {
                    clean.numpy().tobytes(): float(t) for clean, t in zip(batch.clean, batch.t, strict=True)
                }
        wanted = [pair for batch in whole.batches for pair in zip(batch.clean, batch.t, strict=True)]
        assert rows == {clean.numpy().tobytes(): float(t) for clean, t in wanted}
        assert whole.num_samples == len(wanted)
