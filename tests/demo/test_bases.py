"""The three bases in the package: small, whole, and pretrained to follow captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import eridiff
from eridiff import families
from eridiff.demo.drawing import Style, draw
from eridiff.demo.pretrain import OPTIONS
from eridiff.demo.scenes import random_scene
from eridiff.diffusion.randomness import generator
from eridiff.families.base import Conditioning, ModelFamily
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.recipe import Model

BASES = Path(eridiff.__file__).parent / "demo" / "bases"
CPU = torch.device("cpu")
SEEDS = range(8_000_000_000, 8_000_000_024)
"""Scenes that no training has seen."""
TIMES = (0.125, 0.375, 0.625, 0.875)

PSNR_DB = {"plain": 40.0, "neon": 34.0}
LOSS = {"sdxl": 0.02, "sd35": 0.15, "flux": 0.15}
"""Upper bounds of the loss on plain scenes; another scene's caption costs eight to eighteen times as much."""


@dataclass(frozen=True)
class Shipped:
    """A base in the package."""

    family: ModelFamily
    base: Base
    folder: Path


@pytest.fixture(params=families.names())
def shipped(request: pytest.FixtureRequest) -> Shipped:
    family = families.get(request.param, OPTIONS[request.param])
    base = resolve(Model(family=family.name, base=f"builtin:demo-{family.name}"), family)
    return Shipped(family, base, BASES / family.name)


@cache
def pixels(style: Style) -> Tensor:
    """`[N, 3, 128, 128]` float32 in [-1, 1]."""
    drawn = np.stack([np.asarray(draw(random_scene(seed), style)) for seed in SEEDS])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_each_has_at_most_12_mb_and_all_together_30(shipped: Shipped) -> None:
    assert num_bytes(shipped.folder) <= 12_000_000
    assert num_bytes(BASES) <= 30_000_000


def test_each_has_the_true_classes_and_weights_in_half_precision(shipped: Shipped) -> None:
    index = json.loads((shipped.folder / "model_index.json").read_text())
    classes = {name: entry[1] for name, entry in index.items() if isinstance(entry, list)}
    (denoiser,) = shipped.family.parts.denoiser
    wanted = {
        "sdxl": "UNet2DConditionModel",
        "sd35": "SD3Transformer2DModel",
        "flux": "FluxTransformer2DModel",
    }
    assert classes[denoiser] == wanted[shipped.family.name]
    assert classes["vae"] == "AutoencoderKL"
    files = list(shipped.folder.rglob("*.safetensors"))
    assert len(files) == 2 + sum(name.startswith("text_encoder") for name in classes)
    for path in files:
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds == {"F16"}, path


@pytest.mark.parametrize("style", ["plain", "neon"])
def test_the_autoencoder_gives_pictures_of_both_styles_back(shipped: Shipped, style: Style) -> None:
    family = shipped.family
    vae = family.load_vae(shipped.base, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        decoded = vae.decode(family.encode_images(vae, pixels(style)).mean).sample.clamp(-1, 1)
    error = (decoded - pixels(style)).square().mean(dim=(1, 2, 3)) / 4
    psnr = float((-10 * error.log10()).mean())
    assert psnr > PSNR_DB[style]


def test_the_denoiser_knows_plain_scenes_and_listens_to_captions(shipped: Shipped) -> None:
    family = shipped.family
    captions = [random_scene(seed).caption for seed in SEEDS]
    denoiser = family.load_denoiser(shipped.base, device=CPU, dtype=torch.float32)
    encoders = family.load_text_encoders(shipped.base, device=CPU, dtype=torch.float32)
    vae = family.load_vae(shipped.base, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        told = family.encode_prompts(encoders, captions)
        clean = family.latent.scaled(family.encode_images(vae, pixels("plain")).mean)
        geometry = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(len(captions), 6)

        def loss(shift: int) -> float:
            """With the captions of other scenes, `shift` further on."""
            cond = Conditioning(told.text.roll(shift, 0), told.pooled.roll(shift, 0), geometry)
            taken = []
            for time in TIMES:
                t = torch.full((len(captions),), time)
                noise = torch.randn(clean.shape, generator=generator(0, str(time)))
                prediction = family.predict(denoiser, family.objective.noised(clean, noise, t), t, cond)
                taken.append(family.objective.losses(prediction, clean, noise, t).plain.mean())
            return float(torch.stack(taken).mean())

        right, wrong = loss(0), loss(1)
    assert right < LOSS[family.name]
    assert wrong > 5 * right
