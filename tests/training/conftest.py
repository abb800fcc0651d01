"""A tiny random base of each family, with stored latents and embeddings of a few training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.demo.sizes import DEMO, TINY, BaseSize
from eridiff.families.base import ModelFamily
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.families.frozen.keep import PLAIN, Keep
from eridiff.recipe import Model
from eridiff.store.parts import Item, TensorStore
from eridiff.store.snapshots import Sample, text_key
from eridiff.tensors import to_stored
from eridiff.training.cached import Cached, open_cached

CPU = torch.device("cpu")
CAPTIONS = ("", "a red circle on a sand background", "two blue stars", "a small green square")


def make_sample(
    number: int, *, width: int = 64, height: int = 64, repeats: int = 1, flip: bool = False
) -> Sample:
    """Sample `number` has caption number mod 3, every fourth has two."""
    content = f"{number:064x}"
    captions = (CAPTIONS[1 + number % 3], *((CAPTIONS[1 + (number + 1) % 3],) if number % 4 == 0 else ()))
    return Sample(
        sample_id=f"{content[-20:]}-{width}x{height}",
        content=content,
        captions=captions,
        width=2 * width + 20,
        height=2 * height,
        resized_width=width + 10,
        resized_height=height,
        crop_left=4,
        crop_top=0,
        bucket_width=width,
        bucket_height=height,
        flip=flip,
        split="train",
        repeats=repeats,
        shard="a.tar",
        source=f"images/{number}.png",
        dataset=0,
    )


SAMPLES = (
    *(make_sample(number, repeats=1 + number % 2, flip=number % 2 == 0) for number in range(5)),
    *(make_sample(10 + number, width=128) for number in range(3)),
)
"""Five square samples, 7 showings an epoch, and three wide ones."""


@dataclass(frozen=True)
class World:
    """A family, its base, and all that training reads."""

    family: ModelFamily
    base: Base
    samples: tuple[Sample, ...]
    cached: Cached


def open_world(name: str, folder: Path) -> World:
    """What `make_world` left in `folder`."""
    family = families.get(name, {})
    base = resolve(Model(family=name, base=str(folder / "base")), family)
    latents, text = TensorStore(folder / "latents", "l"), TensorStore(folder / "text", "t")
    return World(family, base, SAMPLES, open_cached(latents, text, SAMPLES))


def make_world(name: str, folder: Path, size: BaseSize = TINY) -> World:
    save_random_base(name, folder / "base", size=size)
    family = families.get(name, {})
    base = resolve(Model(family=name, base=str(folder / "base")), family)
    latents, text = TensorStore(folder / "latents", "l"), TensorStore(folder / "text", "t")
    with torch.no_grad():
        encoders = family.load_text_encoders(base, device=CPU, dtype=torch.float32)
        prompts = family.encode_prompts(encoders, CAPTIONS)
    text.append(
        [
            Item(
                text_key(caption),
                {
                    "text": to_stored(prompts.text[i].bfloat16()),
                    "pooled": to_stored(prompts.pooled[i].bfloat16()),
                },
            )
            for i, caption in enumerate(CAPTIONS)
        ]
    )
    flips = [
        (sample, mirrored) for sample in SAMPLES for mirrored in (False, True) if sample.flip or not mirrored
    ]
    latents.append([make_latents(family, sample, mirrored) for sample, mirrored in flips])
    return open_world(name, folder)


def make_latents(family: ModelFamily, sample: Sample, mirrored: bool) -> Item:
    generator = torch.Generator().manual_seed(2 * int(sample.content, 16) + mirrored)
    shape = (family.latent.channels, sample.bucket_height // 8, sample.bucket_width // 8)
    mean, logvar = torch.randn(shape, generator=generator), torch.full(shape, -2.0)
    return Item(sample.latent_key(mirrored), {"mean": to_stored(mean), "logvar": to_stored(logvar)})


@pytest.fixture(scope="session", params=families.names())
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for each family."""
    return make_world(request.param, tmp_path_factory.mktemp(f"world-{request.param}"))


@pytest.fixture(scope="session", params=families.names())
def larger_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for each family, of the demo's widths: with heads of 32, as some kernels want at least."""
    return make_world(request.param, tmp_path_factory.mktemp(f"larger-{request.param}"), DEMO)


@pytest.fixture(scope="session")
def any_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One family's, for what does not depend on the family."""
    return make_world(families.names()[1], tmp_path_factory.mktemp("any-world"))


PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def make_denoiser(
    world: World,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    keep: Keep = PLAIN,
    targets: Sequence[str] = ("to_q", "to_v"),
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A fresh denoiser with a LoRA on its attention, whose product is not zero, and the LoRA's parameters.

    Training computes the default targets layer by layer, and `PROJECTIONS` in joint products.
    """
    denoiser = world.family.load_denoiser(world.base, device=device, dtype=dtype, keep=keep)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=list(targets), init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        inject_adapter_in_model(config, denoiser)
        parameters = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
        for name, parameter in parameters.items():
            parameter.data = parameter.data.float().to(device)
            if "lora_B" in name:
                parameter.data.copy_(0.02 * torch.randn(parameter.shape))
    return denoiser, parameters
