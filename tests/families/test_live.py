"""Text encoders in use while they change: what is cached and what is made anew are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from eridiff.families import live
from eridiff.families.base import Prompts
from eridiff.families.encoders import clip_forward, clip_tokens
from tests.families.samples import CAPTIONS, CPU_FP32

TEXTS = [*CAPTIONS, "", "many small green diamonds " * 60]


def loaded(tiny: Any, dtype: torch.dtype = torch.float32) -> live.LiveText:
    return live.load(tiny.family, tiny.base, device=torch.device("cpu"), dtype=dtype)


def with_lora(text: live.LiveText) -> live.LiveText:
    """Encoders with a LoRA that changes nothing yet."""
    for model in text.models.values():
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "fc1"]), model)
    return text


def one_each(text: live.LiveText, captions: list[str]) -> list[torch.Tensor]:
    return [ids[:, None] for ids in text.tokens(captions)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_made_anew_are_the_cached_ones_to_the_bit(tiny: Any, dtype: torch.dtype) -> None:
    encoders = tiny.family.load_text_encoders(tiny.base, device=torch.device("cpu"), dtype=dtype)
    cached, text = tiny.family.encode_prompts(encoders, TEXTS), with_lora(loaded(tiny, dtype))
    with torch.no_grad():
        made = text.prompts(one_each(text, TEXTS), cached)
    assert torch.equal(made.text, cached.text)
    assert torch.equal(made.pooled, cached.pooled)


def test_nothing_of_the_trained_encoders_is_taken_from_the_cache(tiny: Any) -> None:
    cached = tiny.family.encode_prompts(tiny.encoders, TEXTS)
    text, (first, *_) = loaded(tiny), tiny.family.trainable_encoders
    tokens = [ids[:, None].flip(0) for ids in text.tokens(TEXTS)]
    with torch.no_grad():
        made = text.prompts(tokens, cached)
        wanted = clip_forward(text.encoders[first.name], clip_tokens(text.encoders[first.name], TEXTS[::-1]))
    length, width = wanted.penultimate.shape[1:]
    as_text, as_pooled = made.text[:, :length, :width], made.pooled[:, : wanted.pooled.shape[1]]
    assert torch.equal(as_text, wanted.penultimate) or torch.equal(as_pooled, wanted.pooled)
    assert not torch.equal(made.pooled, cached.pooled)


def test_gradients_reach_every_trainable_encoder(tiny: Any) -> None:
    cached, text = tiny.family.encode_prompts(tiny.encoders, TEXTS), with_lora(loaded(tiny))
    made = text.prompts(one_each(text, TEXTS), cached)
    (made.text.square().mean() + made.pooled.square().mean()).backward()
    for encoder in tiny.family.trainable_encoders:
        model = text.models[encoder.name]
        layers = len([name for name, _ in model.named_modules() if name.endswith("q_proj.base_layer")])
        reached = [
            int(name.split("layers.")[1].split(".")[0])
            for name, parameter in model.named_parameters()
            if "lora_B" in name and parameter.grad is not None and parameter.grad.any()
        ]
        assert set(reached) == set(range(layers - encoder.idle_layers))


def test_text_and_pooled_may_be_of_two_captions(tiny: Any) -> None:
    spoken, pooled = TEXTS[:2], [TEXTS[2], TEXTS[0]]
    text = loaded(tiny)
    kept = tiny.family.encode_prompts(tiny.encoders, spoken)
    tokens = [torch.stack(ids, 1) for ids in zip(text.tokens(spoken), text.tokens(pooled), strict=True)]
    with torch.no_grad():
        made = text.prompts(tokens, kept)
    assert torch.equal(made.text, kept.text)
    wanted = tiny.family.encode_prompts(tiny.encoders, pooled).pooled
    torch.testing.assert_close(made.pooled, wanted, rtol=0, atol=1e-6)


def test_only_the_encoders_that_are_trained_are_read(tiny: Any) -> None:
    others = {
        name: component
        for name, component in tiny.base.components.items()
        if name in (*tiny.family.parts.denoiser, "vae")
        or (name.startswith("text_encoder") and name not in loaded(tiny).encoders)
    }
    base = replace(tiny.base, components={n: c for n, c in tiny.base.components.items() if n not in others})
    text = live.load(tiny.family, base, **CPU_FP32)
    assert list(text.encoders) == [encoder.name for encoder in tiny.family.trainable_encoders]
    assert not any(weight.requires_grad for model in text.models.values() for weight in model.parameters())


def test_where_every_encoder_is_trained_nothing_need_be_cached(world: Any) -> None:
    tiny = world("sdxl")
    text = loaded(tiny)
    made = text.prompts(one_each(text, TEXTS), Prompts(torch.empty(5, 0), torch.empty(5, 0)))
    assert made.text.shape[:2] == (len(TEXTS), 77)
