"""Our processors against diffusers' own, on each family's tiny denoiser: equal to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor, nn

from tests.families.samples import CAPTIONS, conditioning

# Dynamo looks at `.grad` of whatever it meets.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
THEIRS = {"flux": FluxAttnProcessor, "sd35": JointAttnProcessor2_0, "sdxl": AttnProcessor2_0}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def attentions(denoiser: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in denoiser.named_modules() if hasattr(module, "processor")}


def with_theirs(tiny: Any) -> Any:
    """A copy of the denoiser with diffusers' processors, as diffusers' own constructor set them."""
    denoiser = copy.deepcopy(tiny.denoiser)
    denoiser.set_attn_processor(THEIRS[tiny.family.name]())
    return denoiser


def passed(tiny: Any, denoiser: nn.Module) -> list[Tensor]:
    """The prediction, and the gradients of all weights and of the noisy latents, for two images."""
    denoiser.requires_grad_(True)
    generator = torch.Generator().manual_seed(4)
    noisy = torch.randn(2, tiny.family.latent.channels, 16, 8, generator=generator, requires_grad=True)
    with torch.no_grad():
        cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS))
    found = tiny.family.predict(denoiser, noisy, torch.tensor([0.3, 0.8]), cond)
    wanted = torch.randn(found.shape, generator=generator)
    inputs = [noisy, *denoiser.parameters()]
    gradients = torch.autograd.grad((found - wanted).square().sum(), inputs, allow_unused=True)
    denoiser.requires_grad_(False)
    return [found.detach(), *(gradient for gradient in gradients if gradient is not None)]


def test_every_attention_has_ours(tiny: Any) -> None:
    used = {type(module.processor) for module in attentions(tiny.denoiser).values()}
    theirs = {type(module.processor) for module in attentions(with_theirs(tiny)).values()}
    own = getattr(tiny.reference, tiny.family.parts.denoiser[0])
    assert theirs == {type(module.processor) for module in attentions(own).values()}
    assert len(used) == 1
    assert used.pop().__module__ == "eridiff.families.attention.processors"


def test_predictions_and_gradients_are_theirs(tiny: Any) -> None:
    found, wanted = passed(tiny, tiny.denoiser), passed(tiny, with_theirs(tiny))
    assert len(found) == len(wanted) > 20
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_recomputed_gradients_are_theirs(tiny: Any) -> None:
    denoiser = copy.deepcopy(tiny.denoiser)
    denoiser.enable_gradient_checkpointing()
    found, wanted = passed(tiny, denoiser), passed(tiny, with_theirs(tiny))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.slow
def test_compiled_whole_they_are_theirs(tiny: Any) -> None:
    denoisers = copy.deepcopy(tiny.denoiser), with_theirs(tiny)
    for denoiser in denoisers:
        for module in attentions(denoiser).values():
            module.forward = torch.compile(module.forward, backend="aot_eager", fullgraph=True)
    found, wanted = (passed(tiny, denoiser) for denoiser in denoisers)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    for one, two in zip(found, passed(tiny, tiny.denoiser), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(two.abs().max()))
