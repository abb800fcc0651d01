"""One tiny random base of each family, and diffusers' own whole pipeline of it to compare with."""

from functools import cache
from types import SimpleNamespace

import diffusers
import pytest

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.families.checkpoints.base import resolve
from eridiff.recipe import Model
from tests.families.samples import CPU_FP32

PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "sd35": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Everything of a family by its name, each loaded once."""

    @cache
    def load(name):
        folder = tmp_path_factory.mktemp(name)
        save_random_base(name, folder, seed=3)
        family = families.get(name)
        base = resolve(Model(family=name, base=str(folder)), family)
        reference = getattr(diffusers, PIPELINES[name]).from_pretrained(folder, local_files_only=True)
        reference.set_progress_bar_config(disable=True)
        return SimpleNamespace(
            family=family,
            folder=folder,
            base=base,
            reference=reference,
            vae=family.load_vae(base, **CPU_FP32),
            encoders=family.load_text_encoders(base, **CPU_FP32),
            denoiser=family.load_denoiser(base, **CPU_FP32),
            pipeline=family.load_pipeline(base, **CPU_FP32),
        )

    return load


@pytest.fixture(params=families.names())
def tiny(request, world):
    """Each family in turn."""
    return world(request.param)
