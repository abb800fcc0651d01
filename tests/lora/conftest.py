"""A tiny base of each family, and denoisers with a LoRA whose every layer does something."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.families.base import ModelFamily
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.lora.adapters import Lora
from eridiff.lora.inject import Injected, inject, lora_state
from eridiff.recipe import Model, Network

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Tiny:
    """A family with a random base."""

    family: ModelFamily
    folder: Path
    base: Base

    def denoiser(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self.family.load_denoiser(self.base, device=CPU, dtype=dtype)

    def trained(self, **network: object) -> tuple[nn.Module, Injected, Lora]:
        """A denoiser as after training; equal networks share one, so do not change it."""
        return _trained(self, Network.model_validate(network).model_dump_json())


@cache
def _trained(tiny: Tiny, text: str) -> tuple[nn.Module, Injected, Lora]:
    network = Network.model_validate_json(text)
    denoiser = tiny.denoiser()
    injected = inject(denoiser, network, tiny.family, seed=5)
    stir(denoiser)
    return denoiser, injected, injected.lora(lora_state(denoiser))


def stir(denoiser: nn.Module, seed: int = 0) -> None:
    """Give every `up` random values."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora_state(denoiser).items():
            if name.endswith(".lora_B.weight"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    found = {}
    for name in families.names():
        folder = tmp_path_factory.mktemp(name) / "base"
        save_random_base(name, folder)
        family = families.get(name)
        found[name] = Tiny(family, folder, resolve(Model(family=name, base=str(folder)), family))
    return found


@pytest.fixture(params=families.names())
def tiny(request: pytest.FixtureRequest, tiny_bases: dict[str, Tiny]) -> Tiny:
    return tiny_bases[request.param]
