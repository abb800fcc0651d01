"""A tiny random base of each family, with the stored latents and embeddings of a small hold-out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.families.base import ModelFamily
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.recipe import Model
from eridiff.store.parts import Item, TensorStore
from eridiff.store.snapshots import Sample, text_key
from eridiff.tensors import to_stored
from eridiff.training.cached import Cached, open_cached
from tests.evaluation.samples import PROMPTS, make_sample

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Everything that evaluation reads."""

    family: ModelFamily
    base: Base
    samples: tuple[Sample, ...]
    cached: Cached


@pytest.fixture(scope="session", params=families.names())
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    save_random_base(request.param, folder / "base")
    family = families.get(request.param, {})
    base = resolve(Model(family=request.param, base=str(folder / "base")), family)
    samples = tuple([make_sample(number) for number in range(3)] + [make_sample(9, side=128)])
    latents, text = TensorStore(folder / "latents", "l"), TensorStore(folder / "text", "t")
    with torch.no_grad():
        encoders = family.load_text_encoders(base, device=CPU, dtype=torch.float32)
        prompts = family.encode_prompts(encoders, PROMPTS)
    text.append(
        [
            Item(text_key(p), {"text": to_stored(prompts.text[i]), "pooled": to_stored(prompts.pooled[i])})
            for i, p in enumerate(PROMPTS)
        ]
    )
    latents.append([_latents(family, sample) for sample in samples])
    cached = open_cached(latents, text, samples)
    return World(family, base, samples, replace(cached, text=text.open()))


@pytest.fixture(scope="session")
def pipeline(world: World) -> object:
    return world.family.load_pipeline(world.base, device=CPU, dtype=torch.float32)


def _latents(family: ModelFamily, sample: Sample) -> Item:
    generator = torch.Generator().manual_seed(int(sample.content, 16))
    shape = (family.latent.channels, sample.bucket_height // 8, sample.bucket_width // 8)
    mean = torch.randn(shape, generator=generator)
    stored = {"mean": to_stored(mean), "logvar": to_stored(torch.zeros(shape))}
    return Item(sample.latent_key(False), stored)
