"""Batches whose text is made by encoders in training: the same draws, captions in place of embeddings."""

from __future__ import annotations

import pytest
import torch

from eridiff.encoding.wanted import EMPTY_PROMPT
from eridiff.families import live
from eridiff.families.live import LiveText
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Network
from eridiff.training.attention import gradient
from eridiff.training.batches import Batches, Draws
from eridiff.training.order import Draw
from eridiff.training.step import Batch
from tests.training.conftest import CPU, World


def loaded(world: World) -> LiveText:
    return live.load(world.family, world.base, device=CPU, dtype=torch.float32)


def batch_of(world: World, text: LiveText | None, *, dropout: float = 0.0, pooled: bool = True) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, dropout, pooled), text)
    return maker.batch(3, [Draw(sample.sample_id, 0) for sample in world.samples[:5]])


def spoken(batch: Batch, text: LiveText, world: World) -> list[list[str]]:
    """The captions behind a batch's tokens, those of a sample in a row."""
    assert batch.captions is not None
    known = [EMPTY_PROMPT, *{caption for sample in world.samples for caption in sample.captions}]
    by_ids = {tuple(ids.tolist()): caption for ids, caption in zip(text.tokens(known)[0], known, strict=True)}
    return [[by_ids[tuple(ids.tolist())] for ids in row] for row in batch.captions.tokens[0]]


def test_everything_but_the_text_is_drawn_as_without(world: World) -> None:
    plain, made = batch_of(world, None, dropout=0.5), batch_of(world, loaded(world), dropout=0.5)
    for first, second in zip(plain.tensors(), made.tensors()[: len(plain.tensors())], strict=True):
        assert torch.equal(first, second)


def test_captions_are_the_samples_own_and_dropout_empties_them(world: World) -> None:
    text = loaded(world)
    rows = spoken(batch_of(world, text), text, world)
    assert all(row[0] in sample.captions for row, sample in zip(rows, world.samples, strict=False))
    assert all(len(row) == 1 for row in rows)
    assert spoken(batch_of(world, text, dropout=1.0), text, world) == [[EMPTY_PROMPT]] * 5
    kept = spoken(batch_of(world, text, dropout=1.0, pooled=False), text, world)
    assert [row[1] for row in kept] == [row[0] for row in rows]
    assert {row[0] for row in kept} == {EMPTY_PROMPT}


def test_what_the_denoiser_is_told_is_what_was_cached_in_bf16(world: World) -> None:
    plain, made = batch_of(world, None), batch_of(world, loaded(world))
    with torch.no_grad():
        told = made.told()
    torch.testing.assert_close(told.text.bfloat16().float(), plain.cond.text.float(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        told.pooled.bfloat16().float(), plain.cond.pooled.float(), rtol=1e-2, atol=1e-2
    )


def test_a_batch_keeps_its_captions_through_every_change(world: World) -> None:
    made = batch_of(world, loaded(world))
    assert made.captions is not None
    one = made.only(2)
    assert one.captions is not None
    for whole, alone in zip(made.captions.tokens, one.captions.tokens, strict=True):
        assert torch.equal(alone, whole[2:3])
    assert len(made.tensors()) == 6 + len(world.family.trainable_encoders)
    half = made.cropped()
    assert half is None or half.captions is made.captions


@pytest.mark.parametrize("pooled", [True, False])
def test_gradients_of_samples_sum_to_the_batchs_on_any_number_of_devices(world: World, pooled: bool) -> None:
    text = loaded(world)
    denoiser = world.family.load_denoiser(world.base, device=CPU, dtype=torch.float32)
    inject(denoiser, Network(linear=2), world.family, seed=1, encoders=text.models)
    parameters = lora_state(denoiser, text.models)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    batch = batch_of(world, text, dropout=0.5, pooled=pooled)
    whole = gradient(world.family, denoiser, parameters, batch, backend="math")
    alone = [
        gradient(world.family, denoiser, parameters, batch.only(number), backend="math")
        for number in range(5)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean(dim=0), rtol=1e-3, atol=1e-6)
    sizes = [parameter.numel() for parameter in parameters.values()]
    reached = {
        name.split(".")[0]
        for name, part in zip(parameters, whole.split(sizes), strict=True)
        if name.startswith("text_encoder") and part.any()
    }
    assert reached == {encoder.name for encoder in world.family.trainable_encoders}
