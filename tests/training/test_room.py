"""Predicted memory, against what torch itself counts, and the advice that follows from it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import SINGLES, Case
from benchmarks.random_bases import BASES
from eridiff import families
from eridiff.demo.architecture import build_denoiser_on_meta
from eridiff.families.activations import Workload
from eridiff.families.base import Conditioning, ModelFamily
from eridiff.families.frozen.keep import Keep, Quantization, blocks_of, weight_bytes
from eridiff.lora.forward import compute_in_input_precision
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Dataset, Model, Network, Recipe, Train
from eridiff.training import room as module
from eridiff.training.footprint import CONTEXT_BYTES, num_trained
from eridiff.training.room import Room, next_saving, room
from eridiff.training.step import Batch, losses
from tests.training.conftest import World

META = torch.device("meta")
CELLS = 128


class Fused(torch.autograd.Function):
    """What a fused attention keeps: the meta device has none."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, found, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return found


@contextmanager
def counting(denoiser: nn.Module, blocks: tuple[str, ...]) -> Iterator[dict[str | None, dict[int, int]]]:
    """Bytes of storages that autograd keeps, by the block that they were kept in."""
    kept: dict[str | None, dict[int, int]] = {}
    alive, current = [], [None]
    weights = {weight.untyped_storage()._cdata for weight in denoiser.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            alive.append(tensor)
            kept.setdefault(current[0], {})[storage._cdata] = storage.nbytes()
        return tensor

    def enter(name: Any) -> Any:
        return lambda *_: current.__setitem__(0, name)

    for name in blocks:
        block = denoiser.get_submodule(name)
        block.register_forward_pre_hook(enter(name))
        block.register_forward_hook(enter(None))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def batch_of(case: Case, family: ModelFamily) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, device=META)

    latents = (family.latent.channels, CELLS, CELLS)
    cond = Conditioning(normal(*case.text).bfloat16(), normal(case.pooled).bfloat16(), normal(6))
    return Batch(("a",), normal(*latents), normal(*latents), torch.zeros(1, device=META), cond)


@pytest.mark.slow
@pytest.mark.parametrize("case", SINGLES.values(), ids=SINGLES)
@pytest.mark.filterwarnings("ignore:.*should be kept in float32")
def test_activations_and_lora_at_published_sizes_are_those_that_torch_counts(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, size = BASES[case.recipe]
    family, network = families.get(name, {}), Network(linear=16, linear_alpha=16)
    denoiser: Any = build_denoiser_on_meta(name, size)
    denoiser = denoiser.to(torch.bfloat16).requires_grad_(False)
    shapes = {key: tuple(weight.shape) for key, weight in denoiser.named_parameters()}
    blocks = blocks_of((key for key, _ in denoiser.named_modules()), family.checkpoint.blocks)
    inject(denoiser, network, family, seed=0)
    compute_in_input_precision(denoiser)

    def attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Any:
        return Fused.apply(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with counting(denoiser, blocks) as kept:
        losses(family, denoiser, batch_of(case, family))
    found = {block: sum(sizes.values()) for block, sizes in kept.items()}
    predicted = family.activations(shapes, Workload(1, CELLS, CELLS))
    for block in blocks:
        # Where no LoRA came before, nothing is kept; a plan does not know the order.
        if block in found:
            assert predicted.blocks[block].kept == pytest.approx(found[block], rel=0.06), block
    assert predicted.outside == pytest.approx(found[None], rel=0.1)
    assert predicted.peak(frozenset()) == pytest.approx(sum(found.values()), rel=0.04)
    assert num_trained(shapes, network, family) == sum(p.numel() for p in lora_state(denoiser).values())


def recipe(world: World, **sections: Any) -> Recipe:
    return Recipe(
        name="tiny",
        model=Model(family=world.family.name, base=world.base.source, **sections.pop("model", {})),
        datasets=(Dataset(folder_path=Path("images"), resolution=128),),
        network=Network.model_validate(sections.pop("network", {})),
        train=Train.model_validate({"batch_size": 2, **sections.pop("train", {})}),
    )


def room_of(world: World, **sections: Any) -> Room:
    return room(recipe(world, **sections), world.family, world.base, world.samples)


def test_each_saving_saves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "card_bytes", lambda device: ())
    plain = room_of(world)
    assert plain.fits
    assert not plain.checkpointed
    assert (
        room_of(world, train={"gradient_checkpointing": True}).needed.activations < plain.needed.activations
    )
    quantised = room_of(world, model={"quantize": "nf4"})
    assert quantised.needed.base < room_of(world, model={"quantize": "int8"}).needed.base < plain.needed.base
    away = room_of(world, train={"offload": 1.0})
    assert away.needed.base < plain.needed.base
    assert away.needed.activations < plain.needed.activations
    assert room_of(world, train={"optimizer": "adamw8bit"}).needed.optimizer < plain.needed.optimizer
    assert room_of(world, train={"batch_size": 4}).needed.activations > plain.needed.activations
    assert 2 * room_of(world, network={"init": "pissa"}).needed.lora == 3 * plain.needed.lora


def test_checkpointing_counts_where_it_would_come_on_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "card_bytes", lambda device: ())
    plain, saved = room_of(world), room_of(world, train={"gradient_checkpointing": True})
    card = CONTEXT_BYTES + (plain.needed.total + saved.needed.total) // 2
    monkeypatch.setattr(module, "card_bytes", lambda device: (card, 2 * card))
    found = room_of(world)
    assert found.checkpointed
    assert found.fits
    assert found.needed == saved.needed
    refused = room_of(world, train={"gradient_checkpointing": False})
    assert not refused.fits
    assert "too much; set train.gradient_checkpointing: auto" in str(refused)


def advice(train: Train, quantize: Quantization, **how: Any) -> str:
    return next_saving(train, quantize, **{"num_cards": 1, "num_processes": 1, "from_weights": False, **how})


def test_advice_leads_from_one_saving_to_the_next_and_ends() -> None:
    train = Train(gradient_checkpointing=False, batch_size=4)
    steps = [
        (train, "none", "gradient_checkpointing: auto"),
        (train.model_copy(update={"gradient_checkpointing": "auto"}), "none", "train.batch_size: 2"),
        (Train(), "none", "model.quantize: int8"),
        (Train(), "int8", "train.offload: 0.25"),
        (Train(offload=0.9), "int8", "train.offload: 1"),
        (Train(offload=1.0), "int8", "model.quantize: nf4"),
        (Train(offload=1.0), "nf4", "lower datasets.resolution"),
        (Train(shard_base=True), "int8", "train.shard_base: false and train.offload: 1"),
    ]
    for settings, quantize, wanted in steps:
        assert wanted in advice(settings, quantize)  # pyright: ignore[reportArgumentType]


def test_advice_leaves_out_what_is_set_or_would_be_refused() -> None:
    last = Train(offload=1.0, optimizer="adamw8bit")
    assert "adamw8bit" not in advice(last, "nf4")
    assert "quantize" not in advice(Train(), "none", from_weights=True)
    assert "quantize" not in advice(Train(offload=1.0), "none", from_weights=True)
    four = {"num_cards": 4, "num_processes": 4}
    assert "batch_size" not in advice(Train(batch_size=4, shard_base=True), "none", **four)
    assert "batch_size: 4" in advice(Train(batch_size=8, shard_base=True), "none", **four)
    begun = advice(Train(shard_base=True), "none", num_cards=4)
    assert begun == "start `torchrun --nproc-per-node 4 -m stages.train RECIPE`"


def test_with_several_cards_the_base_is_to_be_spread_before_it_is_quantised() -> None:
    assert "train.batch_size: 2" in advice(Train(batch_size=4), "none", num_cards=2)
    quantizations: tuple[Quantization, ...] = ("none", "int8", "nf4")
    for quantize in quantizations:
        found = advice(Train(), quantize, num_cards=2)
        assert "set train.shard_base: true" in found
        assert "torchrun --nproc-per-node 2" in found
    for settings in (Train(shard_base=True), Train(offload=0.25)):
        assert advice(settings, "none", num_cards=2, num_processes=2) == "set model.quantize: int8"


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_each_card_keeps_its_part_of_a_spread_base_and_two_blocks_that_visit(
    world: World, monkeypatch: pytest.MonkeyPatch, quantize: Quantization
) -> None:
    settings = {"model": {"quantize": quantize}, "train": {"shard_base": True}}
    found = {}
    for count in (0, 1, 2, 3):
        monkeypatch.setattr(module, "card_bytes", lambda device, count=count: (10**9,) * count)
        found[count] = room_of(world, **settings)
        assert found[count].num_cards == max(count, 1)
        assert (f", the base spread over {count} cards" in str(found[count])) == (count > 1)
    whole = room_of(world, model={"quantize": quantize})
    # Of a batch of two, each card computes one sample.
    away = room_of(world, model={"quantize": quantize}, train={"offload": 1.0, "batch_size": 1}).needed
    assert found[0].needed == found[1].needed == whole.needed, "one card alone holds the base whole"
    assert whole.num_cards == 1, "other cards hold a base of their own"
    name = world.base.layout.denoiser
    shapes = module.shapes_of(world.base.layout.models[name], world.base.component(name))
    sizes = weight_bytes(shapes, world.family.checkpoint.blocks, Keep(quantize), item_bytes=2)
    blocks = sum(size for block, size in sizes.items() if block is not None)
    for count in (2, 3):
        part = math.ceil(blocks / count)
        assert found[count].needed == replace(away, base=away.base + part)


def test_advice_counts_the_cards_that_are_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"batch_size": 1}
    for count, wanted in ((1, "set model.quantize: int8"), (2, "set train.shard_base: true")):
        monkeypatch.setattr(module, "card_bytes", lambda device, count=count: (CONTEXT_BYTES,) * count)
        assert f"too much; {wanted}" in str(room_of(world, train=small))
    monkeypatch.setattr(module, "card_bytes", lambda device: (CONTEXT_BYTES,) * 2)
    spread = room_of(world, train={**small, "shard_base": True})
    assert "the base spread over 2 cards: too much; set model.quantize: int8" in str(spread)


def test_predicting_loads_no_torch() -> None:
    check = "import sys, eridiff.training.room; print(*{'torch', 'diffusers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointed", [False, True])
def test_on_a_gpu_a_step_takes_about_what_was_predicted(checkpointed: bool) -> None:
    """SDXL at its published size, whose weights are one third of the peak without checkpointing."""
    from benchmarks.memory import Trial, measured

    trial = Trial("sdxl", Train(gradient_checkpointing=checkpointed), "none", cap_gb=None)
    found = measured(trial, steps=2)
    assert found["peak_gb"] == pytest.approx(found["predicted_gb"], rel=0.15)
