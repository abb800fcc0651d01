"""Images from embeddings alone against each pipeline's own images from the prompt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eridiff import families
from eridiff.families.base import SampleRequest
from tests.families.samples import CAPTIONS, CPU_FP32

REQUEST = SampleRequest(seeds=(5, 6), width_px=64, height_px=128, steps=3, guidance=4.0)


def from_embeddings(tiny, negatives):
    prompts = tiny.family.encode_prompts(tiny.encoders, CAPTIONS)
    return tiny.family.sample(tiny.pipeline, prompts, negatives, REQUEST)


def from_prompts(tiny, **arguments):
    return tiny.reference(
        list(CAPTIONS),
        width=REQUEST.width_px,
        height=REQUEST.height_px,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in REQUEST.seeds],
        **arguments,
    ).images


def assert_equal_images(ours, references):
    for one, two in zip(ours, references, strict=True):
        one, two = np.asarray(one, dtype=int), np.asarray(two, dtype=int)
        assert two.std() > 3, "a flat image shows nothing"
        assert np.abs(one - two).max() <= 1


def test_sdxl_without_a_negative_prompt(world):
    tiny = world("sdxl")
    negatives = tiny.family.unconditional(tiny.family.encode_prompts(tiny.encoders, [""] * 2))
    assert_equal_images(from_embeddings(tiny, negatives), from_prompts(tiny))


def test_sdxl_with_a_negative_prompt(world):
    tiny = world("sdxl")
    negatives = tiny.family.encode_prompts(tiny.encoders, ["green"] * 2)
    assert_equal_images(from_embeddings(tiny, negatives), from_prompts(tiny, negative_prompt=["green"] * 2))


@pytest.mark.parametrize("negative", ["", "green"])
def test_sd35(world, negative):
    tiny = world("sd35")
    negatives = tiny.family.encode_prompts(tiny.encoders, [negative] * 2)
    reference = from_prompts(tiny, negative_prompt=[negative] * 2, max_sequence_length=154)
    assert_equal_images(from_embeddings(tiny, negatives), reference)


def test_flux_which_does_not_look_at_negatives(world):
    tiny = world("flux")
    references = from_prompts(tiny, max_sequence_length=512)
    for negative in ("", "green"):
        negatives = tiny.family.encode_prompts(tiny.encoders, [negative] * 2)
        assert_equal_images(from_embeddings(tiny, negatives), references)


def test_sampling_leaves_the_denoiser_as_it_was(tiny):
    before = {key: value.clone() for key, value in tiny.denoiser.state_dict().items()}
    from_embeddings(tiny, tiny.family.encode_prompts(tiny.encoders, [""] * 2))
    denoiser = getattr(tiny.pipeline, tiny.family.parts.denoiser[0])
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())


def test_half_precision_pipelines_sample(tiny):
    pipeline = tiny.family.load_pipeline(tiny.base, device=CPU_FP32["device"], dtype=torch.bfloat16)
    prompts = tiny.family.encode_prompts(tiny.encoders, CAPTIONS)
    images = tiny.family.sample(pipeline, prompts, tiny.family.unconditional(prompts), REQUEST)
    assert [image.size for image in images] == [(64, 128)] * 2
    assert all(np.asarray(image).std() > 3 for image in images)


def test_flux_s_bfloat16_pipeline_is_told_the_sampler_s_own_times(world):
    tiny = world("flux")
    pipeline = tiny.family.load_pipeline(tiny.base, device=CPU_FP32["device"], dtype=torch.bfloat16)
    prompts = tiny.family.encode_prompts(tiny.encoders, CAPTIONS)
    told = []
    projection = pipeline.transformer.time_text_embed.time_proj
    hook = projection.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    tiny.family.sample(pipeline, prompts, prompts, replace(REQUEST, guidance=3.5))
    hook.remove()
    times, guidances = torch.stack(told[::2]), torch.stack(told[1::2])
    torch.testing.assert_close(times, pipeline.scheduler.timesteps[:, None].expand(3, 2), rtol=1e-6, atol=0)
    assert (guidances == 3500).all()
    assert not pipeline.transformer.time_text_embed._forward_pre_hooks


def test_sdxl_s_vae_decodes_in_float32_whatever_the_unet_is(world):
    tiny = world("sdxl")
    pipeline = tiny.family.load_pipeline(tiny.base, device=CPU_FP32["device"], dtype=torch.bfloat16)
    assert pipeline.vae.dtype == torch.float32
    assert pipeline.unet.dtype == torch.bfloat16


def test_sdxl_s_sampler_follows_the_options(world):
    tiny = world("sdxl")
    family = families.get("sdxl", {"prediction_type": "v_prediction", "zero_terminal_snr": True})
    bare = replace(tiny.base, components=_without_scheduler(tiny.base))
    scheduler = family.load_pipeline(bare, **CPU_FP32).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    assert scheduler.config.timestep_spacing == "trailing"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999


def _without_scheduler(base):
    return {name: component for name, component in base.components.items() if name != "scheduler"}
