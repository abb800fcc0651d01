"""Embeddings against each pipeline's own `encode_prompt`."""

import pytest
import torch

from eridiff import families
from tests.families.samples import CAPTIONS

TEXTS = [*CAPTIONS, "", "many small green diamonds " * 60]
"""Two captions, the empty one, and one that is too long for CLIP."""
# Attention with and without gradients may use kernels that round differently.
pytestmark = pytest.mark.usefixtures("without_gradients")
EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


def test_sdxl(world):
    tiny = world("sdxl")
    prompts = tiny.family.encode_prompts(tiny.encoders, TEXTS)
    text, _, pooled, _ = tiny.reference.encode_prompt(TEXTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(prompts.text, text, **EXACT)
    torch.testing.assert_close(prompts.pooled, pooled, **EXACT)


@pytest.mark.parametrize("length", [77, 154, 256])
def test_sd35(world, length):
    tiny = world("sd35")
    family = families.get("sd35", {"t5_length": length})
    prompts = family.encode_prompts(tiny.encoders, TEXTS)
    text, _, pooled, _ = tiny.reference.encode_prompt(
        TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    assert text.shape[1] == 77 + length
    torch.testing.assert_close(prompts.text, text, **EXACT)
    torch.testing.assert_close(prompts.pooled, pooled, **EXACT)


@pytest.mark.parametrize("length", [256, 512])
def test_flux(world, length):
    tiny = world("flux")
    family = families.get("flux", {"t5_length": length})
    prompts = family.encode_prompts(tiny.encoders, TEXTS)
    text, pooled, _ = tiny.reference.encode_prompt(TEXTS, max_sequence_length=length)
    torch.testing.assert_close(prompts.text, text, **EXACT)
    torch.testing.assert_close(prompts.pooled, pooled, **EXACT)


def test_sd35_can_zero_the_padding_of_t5(world):
    tiny = world("sd35")
    zeroed = families.get("sd35", {"mask_mode": "zero"}).encode_prompts(tiny.encoders, CAPTIONS)
    reference = tiny.family.encode_prompts(tiny.encoders, CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        num_text = 77 + len(tiny.encoders[2].tokenizer(caption).input_ids)
        assert torch.equal(zeroed.text[row, :num_text], reference.text[row, :num_text])
        assert not zeroed.text[row, num_text:].any()
        assert reference.text[row, num_text:].any()


def test_clip_l_fills_up_with_the_end_of_text_and_clip_g_with_zero(world):
    tiny = world("sdxl")
    seen = {}
    for name, encoder in zip(("l", "g"), tiny.encoders, strict=True):
        hook = encoder.model.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0]})
        )
        tiny.family.encode_prompts(tiny.encoders, CAPTIONS[:1])
        hook.remove()
    end = tiny.encoders[0].tokenizer.eos_token_id
    assert seen["l"].shape == seen["g"].shape == (1, 77)
    num_text = int((seen["l"][0] == end).int().argmax()) + 1
    assert torch.equal(seen["l"][0, :num_text], seen["g"][0, :num_text])
    assert (seen["l"][0, num_text:] == end).all()
    assert (seen["g"][0, num_text:] == 0).all()


def test_sdxl_is_led_away_from_zero_and_the_others_from_the_empty_prompt(tiny):
    empty = tiny.family.encode_prompts(tiny.encoders, [""])
    unconditional = tiny.family.unconditional(empty)
    if tiny.reference.config.get("force_zeros_for_empty_prompt"):
        assert not unconditional.text.any()
        assert not unconditional.pooled.any()
    else:
        assert unconditional is empty
