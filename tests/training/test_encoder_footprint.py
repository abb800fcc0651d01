"""Predicted memory of text encoders in training, against what torch itself counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eridiff.families import live
from eridiff.families.checkpoints.facts import fact
from eridiff.lora.encoders import choose_in_encoder
from eridiff.lora.forward import compute_in_input_precision
from eridiff.lora.inject import inject, lora_state, put_in
from eridiff.recipe import Dataset, Model, Network, Recipe, Train
from eridiff.training.encoder_footprint import TOKENS, UNITS, with_encoders
from eridiff.training.footprint import Footprint
from tests.training.conftest import CPU, World

NOTHING = Footprint(base=0, lora=0, optimizer=0, activations=0, workspace=0)


def recipe(world: World, **train: Any) -> Recipe:
    return Recipe(
        name="tiny",
        model=Model(family=world.family.name, base=world.base.source),
        datasets=(Dataset(folder_path=Path("images")),),
        network=Network(linear=2, text_encoder_linear=3),
        train=Train.model_validate({"batch_size": 2, "train_text_encoder": True, **train}),
    )


def test_weights_and_lora_are_counted_exactly(world: World) -> None:
    made = recipe(world)
    found = with_encoders(NOTHING, made, world.family, world.base)
    text = live.load(world.family, world.base, device=CPU, dtype=torch.bfloat16)
    weights = sum(parameter.nbytes for model in text.models.values() for parameter in model.parameters())
    denoiser = world.family.load_denoiser(world.base, device=CPU, dtype=torch.float32)
    inject(denoiser, made.network, world.family, seed=0, encoders=text.models)
    trained = sum(
        p.numel() for name, p in lora_state(denoiser, text.models).items() if "text_encoder" in name
    )
    assert found.base == weights
    assert (found.lora, found.optimizer) == (8 * trained, 8 * trained)
    assert found.activations > 0


def test_two_captions_a_sample_keep_twice_as_much(world: World) -> None:
    once = with_encoders(NOTHING, recipe(world), world.family, world.base)
    twice = with_encoders(NOTHING, recipe(world, caption_dropout_pooled=False), world.family, world.base)
    assert twice.activations == 2 * once.activations


def test_where_none_are_trained_nothing_is_added(world: World) -> None:
    off = recipe(world, train_text_encoder=False)
    plain = off.model_copy(update={"network": Network(linear=2)})
    assert with_encoders(NOTHING, plain, world.family, world.base) == NOTHING


def test_a_layer_keeps_as_many_activations_as_torch_counts(world: World) -> None:
    config = transformers.CLIPTextConfig.from_dict(fact("clip_l"))
    config.num_hidden_layers = 3
    model = transformers.CLIPTextModel(config).bfloat16().requires_grad_(False).eval()
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    encoder = world.family.trainable_encoders[-1]
    put_in(model, choose_in_encoder(linear, encoder, Network(linear=4)))
    compute_in_input_precision(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            alive.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.ones(1, TOKENS, dtype=torch.int64), output_hidden_states=True)
    unit = TOKENS * config.hidden_size * 2
    assert sum(kept.values()) / unit / config.num_hidden_layers == pytest.approx(UNITS, rel=0.1)
