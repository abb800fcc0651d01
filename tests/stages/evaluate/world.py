"""A run of each family up to the end of its training, and what an evaluation of it left."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from eridiff import recipe
from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import base_of, family_of
from eridiff.lora import export
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Recipe
from eridiff.store.runs import Run
from eridiff.store.tensorfile import digest_tensors
from eridiff.training.inputs import inputs_of
from stages import evaluate, ingest, pipeline, precompute
from stages.dataset import current_snapshot
from stages.stage import StagePlan, StageReport

ALL = 4 * 3 + 3 * 4 * 2 + 1
"""Images of three LoRAs and strengths, losses of three subjects at eight points, and the page."""
COLOURS = ("red", "green", "blue", "gold")


def redness(image: Image.Image) -> float:
    """Mean of the red channel, 0 to 1."""
    return image.resize((1, 1)).getpixel((0, 0))[0] / 255


def draw_images(folder: Path) -> None:
    folder.mkdir()
    for number in range(6):
        image = Image.new("RGB", (96, 96 if number % 2 else 64), COLOURS[number % 4])
        ImageDraw.Draw(image).ellipse((8 + 4 * number, 8, 60, 50), fill="white")
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a white ellipse on {COLOURS[number % 4]}")


def write_recipe(folder: Path, family: str, **sections: dict[str, Any]) -> Path:
    settings: dict[str, Any] = {
        "name": "tiny",
        "trigger_word": "in flat style",
        "model": {"family": family, "base": str(folder / "base")},
        "datasets": [{"folder_path": str(folder / "images"), "resolution": 64}],
        "ingest": {"holdout": 0.5, "bucket_step": 16},
        "network": {"linear": 2, "linear_alpha": 1},
        "train": {"steps": 20, "dtype": "fp32"},
        "sample": {
            "prompts": ["a red circle, [trigger]", "two stars"],
            "width": 64,
            "height": 64,
            "seeds": [1, 2],
            "sample_steps": 2,
            "strengths": [0, 1],
            "checkpoints": "all",
            "metric": "tests.stages.evaluate.world:redness",
        },
        "validation": {"timesteps": 2},
        "storage": {"data": str(folder / "data"), "runs": str(folder / "runs")},
        "device": "cpu",
    }
    for name, changes in sections.items():
        settings[name] = settings[name] | changes
    path = folder / f"{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(json.dumps(settings))
    return path


@dataclass(frozen=True)
class World:
    """A recipe that was run up to the end of its training, in a folder of its own for runs."""

    folder: Path
    family: str
    runs: Path
    planned: StagePlan
    report: StageReport

    def recipe_file(self, **sections: dict[str, Any]) -> Path:
        return write_recipe(self.folder, self.family, **{"storage": {"runs": str(self.runs)}, **sections})

    def recipe(self, **sections: dict[str, Any]) -> Recipe:
        return pipeline.load_recipe(self.recipe_file(**sections))

    @property
    def evaluation(self) -> Path:
        (found,) = (path for path in (self.runs / "tiny").iterdir() if path.is_dir())
        return found / "evaluation"

    def files(self) -> dict[str, bytes]:
        found = (path for path in self.evaluation.rglob("*") if path.is_file())
        return {str(path.relative_to(self.evaluation)): path.read_bytes() for path in found}


def pretend_training(chosen: Recipe) -> Run:
    """A finished run whose LoRA files were drawn instead of trained."""
    run = inputs_of(chosen, current_snapshot(chosen)).run
    family = family_of(chosen)
    denoiser = family.load_denoiser(base_of(chosen), device=torch.device("cpu"), dtype=torch.float32)
    injected = inject(denoiser, chosen.network, family, seed=1)
    for step in (10, 20):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in lora_state(denoiser).items():
            if "lora_B" in name:
                parameter.data.normal_(generator=generator)
        lora = injected.lora({name: p.detach().clone() for name, p in lora_state(denoiser).items()})
        state = export.tensors(
            lora, family, file_format=export.resolve_format("auto", family), dtype=torch.float32
        )
        export.write(run.lora_file(None if step == 20 else step), state, export.structure_metadata(lora))
    rows = [{"step": step, "loss": 1 / step, "ms_per_step": 50.0} for step in range(2, 21, 2)]
    run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run.environment.write_text(json.dumps({"eridiff": "0.1.0", "versions": {"torch": "2"}}))
    run.recipe.write_text(recipe.dump(chosen))
    run.seal({"lora_tensors": digest_tensors(run.lora_file())})
    run.make_latest()
    return run


def prepare(folder: Path, family: str) -> World:
    """A world whose run was evaluated while its text encoders were away."""
    save_random_base(family, folder / "base")
    draw_images(folder / "images")
    chosen = pipeline.load_recipe(write_recipe(folder, family))
    ingest.run(chosen)
    precompute.run(chosen)
    pretend_training(chosen)
    encoders = list((folder / "base").glob("text_encoder*"))
    assert encoders
    for path in encoders:
        path.rename(folder / path.name)
    planned, report = evaluate.plan(chosen), evaluate.run(chosen)
    for path in encoders:
        (folder / path.name).rename(path)
    return World(folder, family, folder / "runs", planned, report)


def copied(world: World, folder: Path) -> World:
    shutil.copytree(world.runs, folder / "runs")
    return replace(world, runs=folder / "runs")
