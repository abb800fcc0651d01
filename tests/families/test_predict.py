"""`predict` against the pipeline's own calls of the denoiser, and what reaches the model."""

from contextlib import contextmanager

import pytest
import torch

from eridiff import families
from eridiff.diffusion import timesteps
from eridiff.diffusion.randomness import generator
from eridiff.families import packing
from eridiff.families.base import Conditioning
from tests.families.samples import CAPTIONS, conditioning

EXACT = {"rtol": 0, "atol": 2e-6}
SIZE = {"height": 128, "width": 64}


@contextmanager
def recorded(module):
    """Positional and keyword inputs of each call of a module, with its output."""
    calls = []
    hook = module.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def conditioned(text, pooled):
    return conditioning(families.base.Prompts(text, pooled))


def test_sdxl_predicts_as_its_pipeline_does(world):
    tiny = world("sdxl")
    places = {"original_size": (1023, 517), "crops_coords_top_left": (3, 259), "target_size": (128, 64)}
    with recorded(tiny.reference.unet) as calls:
        tiny.reference(list(CAPTIONS), num_inference_steps=3, guidance_scale=5.0, **SIZE, **places)
    geometry = torch.tensor([[1023.0, 517.0, 3.0, 259.0, 128.0, 64.0]]).expand(4, 6)
    assert torch.equal(calls[0][1]["added_cond_kwargs"]["time_ids"], geometry)
    for (noisy, step), kwargs, (output,) in calls:
        cond = Conditioning(
            kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"]["text_embeds"], geometry
        )
        with torch.no_grad():
            ours = tiny.family.predict(tiny.denoiser, noisy, timesteps.from_step(step).expand(4), cond)
        torch.testing.assert_close(ours, output, **EXACT)


def test_sd35_predicts_as_its_pipeline_does(world):
    tiny = world("sd35")
    with recorded(tiny.reference.transformer) as calls:
        tiny.reference(
            list(CAPTIONS), num_inference_steps=3, guidance_scale=5.0, max_sequence_length=154, **SIZE
        )
    expected = tiny.family.encode_prompts(tiny.encoders, ["", "", *CAPTIONS])
    assert len(calls) == 3
    for _, kwargs, (output,) in calls:
        cond = conditioned(kwargs["encoder_hidden_states"], kwargs["pooled_projections"])
        torch.testing.assert_close(cond.text, expected.text, **EXACT)
        torch.testing.assert_close(cond.pooled, expected.pooled, **EXACT)
        with torch.no_grad():
            t = kwargs["timestep"] / 1000
            ours = tiny.family.predict(tiny.denoiser, kwargs["hidden_states"], t, cond)
        torch.testing.assert_close(ours, output, **EXACT)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_flux_predicts_as_its_pipeline_does(world, guidance):
    tiny = world("flux")
    family = families.get("flux", {"guidance": guidance})
    with recorded(tiny.reference.transformer) as calls:
        tiny.reference(list(CAPTIONS), num_inference_steps=3, guidance_scale=guidance, **SIZE)
    assert len(calls) == 3
    for _, kwargs, (output,) in calls:
        noisy = packing.unpack(kwargs["hidden_states"], (16, 8))
        cond = conditioned(kwargs["encoder_hidden_states"], kwargs["pooled_projections"])
        with torch.no_grad():
            ours = family.predict(tiny.denoiser, noisy, kwargs["timestep"], cond)
        torch.testing.assert_close(packing.pack(ours), output, **EXACT)
        assert torch.equal(packing.image_ids(noisy), kwargs["img_ids"])


def test_flux_packs_as_its_pipeline_does(world):
    reference = world("flux").reference
    latents = torch.randn(2, 16, 6, 10, generator=generator(0))
    packed = packing.pack(latents)
    assert torch.equal(packed, reference._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(packing.unpack(packed, (6, 10)), latents)
    ids = reference._prepare_latent_image_ids(2, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(packing.image_ids(latents), ids)


TIME_PROJECTIONS = {
    "sdxl": "time_proj",
    "sd35": "time_text_embed.time_proj",
    "flux": "time_text_embed.time_proj",
}


@pytest.mark.parametrize("name", families.names())
def test_time_reaches_the_embedding_of_a_bfloat16_model_unrounded(world, name):
    tiny = world(name)
    denoiser = tiny.family.load_denoiser(tiny.base, device=torch.device("cpu"), dtype=torch.bfloat16)
    t = torch.tensor([0.702, 0.061])
    noisy = torch.randn(2, tiny.family.latent.channels, 8, 8, generator=generator(0))
    cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS))
    with recorded(denoiser.get_submodule(TIME_PROJECTIONS[name])) as calls, torch.no_grad():
        tiny.family.predict(denoiser, noisy, t, cond)
    told = calls[0][0][0]
    if name == "sdxl":
        assert told.tolist() == [701, 60]
        assert torch.equal(timesteps.from_step(told), t)
    else:
        assert told.dtype == torch.float32
        assert torch.equal(told, t * 1000)


def test_flux_is_told_its_guidance_unrounded(world):
    tiny = world("flux")
    denoiser = tiny.family.load_denoiser(tiny.base, device=torch.device("cpu"), dtype=torch.bfloat16)
    cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS[:1]))
    noisy = torch.randn(1, 16, 8, 8, generator=generator(0))
    with recorded(denoiser.time_text_embed.time_proj) as calls, torch.no_grad():
        families.get("flux", {"guidance": 3.5}).predict(denoiser, noisy, torch.tensor([0.5]), cond)
    assert [call[0][0].item() for call in calls] == [500.0, 3500.0]
    assert not denoiser.time_text_embed._forward_pre_hooks


def test_sdxl_is_told_whole_numbers_of_pixels_in_bfloat16(world):
    tiny = world("sdxl")
    denoiser = tiny.family.load_denoiser(tiny.base, device=torch.device("cpu"), dtype=torch.bfloat16)
    prompts = tiny.family.encode_prompts(tiny.encoders, CAPTIONS[:1])
    sizes = torch.tensor([[1023.0, 517.0, 3.0, 259.0, 1025.0, 513.0]])
    noisy = torch.randn(1, 4, 8, 8, generator=generator(0))
    with recorded(denoiser.add_time_proj) as calls, torch.no_grad():
        cond = Conditioning(prompts.text, prompts.pooled, sizes)
        tiny.family.predict(denoiser, noisy, torch.tensor([0.5]), cond)
    assert torch.equal(calls[0][0][0], sizes.flatten())


def test_sdxl_geometry_is_the_pipeline_s_time_ids(world):
    reference = world("sdxl").reference
    ids = reference._get_add_time_ids(
        (1023, 517), (3, 259), (1024, 512), torch.float32, reference.text_encoder_2.config.projection_dim
    )
    assert ids.tolist() == [[1023, 517, 3, 259, 1024, 512]]


def test_a_flux_without_guidance_is_not_told_any(world):
    tiny = world("flux")
    schnell = type(tiny.denoiser)(**{**tiny.denoiser.config, "guidance_embeds": False})
    cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS[:1]))
    noisy = torch.randn(1, 16, 8, 8, generator=generator(0))
    with recorded(schnell.time_text_embed) as calls, torch.no_grad():
        assert tiny.family.predict(schnell, noisy, torch.tensor([0.25]), cond).shape == noisy.shape
    assert calls[0][0][0].item() == 250.0
    assert len(calls[0][0]) == 2
