"""The demo of each family, with fewer steps: its LoRA learns the style, and at strength 0 is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import pytest
import torch
from PIL import Image

from eridiff import families
from eridiff.encoding.spaces import base_of, family_of
from eridiff.evaluation.metrics import load_metric
from eridiff.evaluation.results import LossFile
from eridiff.evaluation.sampling import attached, sample
from eridiff.evaluation.work import BASE, Work, gather, subject_key
from eridiff.lora.read import read_lora
from eridiff.store.runs import latest
from eridiff.store.snapshots import text_key
from eridiff.training.cached import Cached
from stages import pipeline
from stages.dataset import current_snapshot, workspace

CONFIGS = Path(__file__).parents[2] / "configs"
SHORTER = (
    "train.steps=100",
    "train.batch_size=8",
    "save.save_every=100",
    "sample.seeds=[1]",
    "sample.sample_steps=12",
    "validation.timesteps=4",
)

LOSS_LEFT = 0.25
"""At most this share of the base's loss on the hold-out is left."""
SCORE_GAIN = 0.2
"""The least rise of the style's mean score, which is in [0, 1]."""


@dataclass(frozen=True)
class Learned:
    """A finished demo, and its images by strength."""

    work: Work
    images: dict[float, list[Image.Image]]


@pytest.fixture(scope="module", params=families.names())
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    root = tmp_path_factory.mktemp(f"demo-{request.param}")
    places = (f"storage.data={root / 'data'}", f"storage.runs={root / 'runs'}", "device=cpu")
    recipe = pipeline.load_recipe(CONFIGS / f"demo-{request.param}.yaml", [*SHORTER, *places])
    for report in pipeline.run_all(recipe):
        assert report.quarantined == 0
    run = latest(workspace(recipe).run_root(recipe.name))
    assert run is not None
    work = gather(recipe, run, current_snapshot(recipe))
    images: dict[float, list[Image.Image]] = {}
    for picture in work.pictures:
        with Image.open(picture.path(work.images)) as image:
            images.setdefault(picture.strength, []).append(image.convert("RGB"))
    return Learned(work, images)


def sampled(learned: Learned, strengths: Sequence[float | None]) -> list[bytes]:
    """One prompt's pixels from one pipeline, with the LoRA at each strength, or without it (None)."""
    work = learned.work
    family = family_of(work.recipe)
    loaded = family.load_pipeline(base_of(work.recipe), device=torch.device("cpu"), dtype=torch.float32)
    cached = Cached(work.latents.open([]), work.text.open([text_key(t) for t in (*work.prompts, "")]))
    tensors = read_lora(work.final.path, family).peft_state()
    results = []
    for strength in strengths:
        if strength is None:
            (image,) = sample(family, loaded, cached, work.pictures[:1])
        else:
            with attached(loaded, tensors) as lora:
                lora.set_strength(strength)
                (image,) = sample(family, loaded, cached, work.pictures[:1])
        results.append(image.tobytes())
    return results


def test_the_lora_lowers_the_loss_on_images_that_it_was_not_trained_on(learned: Learned) -> None:
    work = learned.work
    losses = LossFile(work.run.evaluation / "validation.json", work.grid_digest).read()
    assert len(work.grid.samples) == len(work.snapshot.holdout) > 0
    base, final = losses[BASE], losses[subject_key(work.final)]
    assert final.mean < LOSS_LEFT * base.mean
    for image, (before, after) in enumerate(zip(base.values, final.values, strict=True)):
        assert mean(after) < mean(before), f"image {image} of the hold-out became worse"


def test_the_lora_brings_the_style_to_combinations_that_it_was_not_shown(learned: Learned) -> None:
    metric = load_metric("eridiff.demo.style:score")
    plain, neon = (mean(map(metric, learned.images[strength])) for strength in (0.0, 1.0))
    assert plain < 0.05
    assert neon > plain + SCORE_GAIN


def test_at_strength_0_the_pipeline_is_the_base_exactly(learned: Learned) -> None:
    base, zero, one = sampled(learned, [None, 0.0, 1.0])
    assert zero == base
    assert one != base
