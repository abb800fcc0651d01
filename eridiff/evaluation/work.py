"""What an evaluation consists of, found by looking: images and losses, and which of them are missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eridiff.encoding.spaces import base_of, family_of, latent_space, text_space, workspace
from eridiff.encoding.wanted import negative_prompt, sample_prompts, usable_samples
from eridiff.errors import StoreError
from eridiff.evaluation.holdout import HoldoutGrid, holdout_grid
from eridiff.evaluation.pictures import LoraFile, Picture, Settings, all_pictures
from eridiff.recipe import Recipe
from eridiff.store.files import FileDigests, digest_json
from eridiff.store.parts import TensorStore
from eridiff.store.runs import Run
from eridiff.store.snapshots import Snapshot
from eridiff.store.tensorfile import digest_tensors

BASE = "base"


@dataclass(frozen=True)
class Work:
    """Everything about the evaluation of one run.

    Attributes:
        recipe: whose sections decide it.
        run: a finished training.
        snapshot: the images that it was trained on and those held out.
        latents: where their latents are.
        text: where embeddings of captions and prompts are.
        loras: its LoRA files in the order of training; the last is the final one.
        settings: what all images share.
        grid: the points of the hold-out at which losses are taken; without images where there are none.
    """

    recipe: Recipe
    run: Run
    snapshot: Snapshot
    latents: TensorStore
    text: TensorStore
    loras: tuple[LoraFile, ...]
    settings: Settings
    grid: HoldoutGrid

    @property
    def final(self) -> LoraFile:
        """The LoRA that the run ended with."""
        return self.loras[-1]

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The sample prompts, with the trigger word, each once."""
        return tuple(dict.fromkeys(sample_prompts(self.recipe)))

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """All images of the grids, in the order in which they are made."""
        wanted = self.recipe.sample
        loras = self.loras if wanted.checkpoints == "all" else self.loras[-1:]
        return all_pictures(self.prompts, wanted.seeds, wanted.strengths, loras, self.settings)

    @property
    def images(self) -> Path:
        """The folder of sampled images."""
        return self.run.evaluation / "images"

    @cached_property
    def missing_pictures(self) -> tuple[Picture, ...]:
        """Those that are not on disk, as of when this was first asked."""
        return tuple(picture for picture in self.pictures if not picture.path(self.images).exists())

    @property
    def subjects(self) -> tuple[LoraFile | None, ...]:
        """Whose losses are taken: the base (None) and each LoRA; nobody's without a hold-out."""
        return (None, *self.loras) if self.grid.samples else ()

    @cached_property
    def grid_digest(self) -> str:
        """What names the losses: a change of anything that decides them changes it."""
        return self.grid.digest(
            {
                "base": self.settings.base,
                "family": self.settings.family,
                "options": self.settings.options,
                "dtype": self.settings.dtype,
                "latents": self.latents.space,
                "text": self.text.space,
            }
        )


def subject_key(lora: LoraFile | None) -> str:
    """What names a subject's losses in `validation.json`."""
    return lora.digest if lora else BASE


def gather(recipe: Recipe, run: Run, snapshot: Snapshot) -> Work:
    """The evaluation of a finished run.

    Args:
        recipe: the run's.
        run: its LoRA files are on disk.
        snapshot: the one that it was trained on.

    Raises:
        ModelError: the base lacks the denoiser or the VAE.
        RecipeError: a prompt asks for a trigger word that there is none of.
        StoreError: the LoRA file is not the one that the training ended with.
    """
    digests = FileDigests(workspace(recipe).digests)
    latents, text = latent_space(recipe).store(), text_space(recipe).store()
    usable = usable_samples(snapshot.holdout, latents.quarantined(), text.quarantined())
    wanted = recipe.validation
    loras = lora_files(run, recipe.train.steps, digests)
    _refuse_another(run, loras[-1])
    return Work(
        recipe=recipe,
        run=run,
        snapshot=snapshot,
        latents=latents,
        text=text,
        loras=loras,
        settings=settings_of(recipe, text.space, digests),
        grid=holdout_grid(usable, max_images=wanted.images, num_times=wanted.timesteps, seed=wanted.seed),
    )


def settings_of(recipe: Recipe, space: str, digests: FileDigests) -> Settings:
    """What all images of a recipe share; `space` is that of the prompt embeddings."""
    family, base = family_of(recipe), base_of(recipe)
    own_scheduler = ("scheduler",) if "scheduler" in base.components else ()
    files = {name: base.files(name) for name in (*family.parts.denoiser, *family.parts.vae, *own_scheduler)}
    kept = "" if recipe.model.quantize == "none" else f"+{recipe.model.quantize}"
    return Settings(
        base=_digest_of(files, digests) + kept,
        base_name=base.source,
        text_space=space,
        family=family.name,
        options=dict(recipe.model.options),
        negative=negative_prompt(recipe),
        width_px=recipe.sample.width,
        height_px=recipe.sample.height,
        steps=recipe.sample.sample_steps,
        guidance=recipe.sample.guidance_scale,
        dtype=recipe.train.dtype,
    )


def lora_files(run: Run, steps: int, digests: FileDigests) -> tuple[LoraFile, ...]:
    """The LoRA files of a run in the order of training: those of its checkpoints, then the final one.

    Args:
        run: a finished training.
        steps: how many steps it took; the checkpoint of the last step is the final file.
        digests: of files.
    """
    found = {step: path for step, path in _checkpoint_files(run) if step < steps}
    found[steps] = run.lora_file()
    return tuple(
        LoraFile(f"step {step}", step, path, digests.digest(path, digest_tensors))
        for step, path in sorted(found.items())
    )


def _refuse_another(run: Run, lora: LoraFile) -> None:
    """Refuses a damaged or exchanged file: its losses and its verdict would stand as those of the run."""
    if run.sealed and lora.digest != run.read_seal()["lora_tensors"]:
        raise StoreError(
            "This LoRA file is not the one that the training ended with.",
            where=lora.path,
            fix="move it away and run `eridiff train` with this recipe: it is written again",
        )


def _checkpoint_files(run: Run) -> Iterator[tuple[int, Path]]:
    for path in run.lora.glob(f"{run.name}-*.safetensors"):
        if step := re.fullmatch(r"-(\d{6,})", path.stem.removeprefix(run.name)):
            yield int(step[1]), path


def _digest_of(files: Mapping[str, Iterable[Path]], digests: FileDigests) -> str:
    named = {name: sorted(digests.digest(path) for path in paths) for name, paths in files.items()}
    return digest_json(named)
