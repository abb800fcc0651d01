"""All that decides a training, and so names its run. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eridiff import __version__
from eridiff.encoding.live import cached_encoders, trained_encoders
from eridiff.encoding.spaces import Space, base_of, family_of, latent_space, text_space, workspace
from eridiff.encoding.wanted import usable_samples
from eridiff.errors import ModelError, RecipeError
from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora.keys import grouped
from eridiff.recipe import Recipe
from eridiff.store.files import FileDigests, digest_json
from eridiff.store.runs import Run
from eridiff.store.snapshots import Sample, Snapshot
from eridiff.store.tensorfile import digest_tensors
from eridiff.training.needed import latent_keys, text_keys

VERSION = 2
"""Goes up when the same inputs would train another LoRA: order, draws, losses, initial weights."""

_ID_LENGTH = 16
_GIVE_A_LORA = "give the path of a LoRA file, seen from the project's folder; or leave the key out"
_HOW_NOT_WHAT = {"gradient_checkpointing", "offload", "shard_base", "attention", "compile"}
"""Settings of `train` that cost memory or time and train the same LoRA: a run goes on when they change."""
_CAME_LATER: Mapping[str, Any] = {
    "loraplus_lr_ratio": 1.0,
    "train_text_encoder": False,
    "text_encoder_lr": None,
    "text_encoder_linear": None,
    "text_encoder_targets": "attn-mlp",
}
"""Settings that runs of earlier versions did not have, with the value that trains as those did: it does not
count, so that they are found again."""


@dataclass(frozen=True)
class Inputs:
    """What a training reads.

    Attributes:
        recipe: its settings.
        snapshot: id of the dataset's snapshot.
        samples: trained on: the snapshot's, without what precompute had to leave out.
        latents: the space of their latents.
        text: the space of their captions' embeddings.
        base: digests of the denoiser's files, by component.
        start: digest of the tensors of the LoRA that it starts from, if any.
    """

    recipe: Recipe
    snapshot: str
    samples: tuple[Sample, ...]
    latents: Space
    text: Space
    base: Mapping[str, list[str]]
    start: str | None

    @cached_property
    def run(self) -> Run:
        """The run that these inputs make: the same inputs, the same run."""
        recipe = self.recipe
        decides = {
            "version": VERSION,
            "snapshot": self.snapshot,
            "samples": [[sample.sample_id, sample.captions] for sample in self.samples],
            "latents": self.latents.digest,
            "text": self.text.digest,
            "family": recipe.model.family,
            "options": family_of(recipe).options.model_dump(mode="json"),
            "base": self.base,
            "start": self.start,
            "network": _deciding(recipe.network.model_dump(mode="json", exclude={"init_from"})),
            "train": _deciding(recipe.train.model_dump(mode="json", exclude=_HOW_NOT_WHAT)),
            "file": recipe.save.dtype,
        }
        if recipe.model.quantize != "none":  # runs of whole bases keep the names that they had
            decides["quantize"] = recipe.model.quantize
        return Run(workspace(recipe).run_root(recipe.name), digest_json(decides)[:_ID_LENGTH])

    @property
    def provenance(self) -> dict[str, str]:
        """Where a LoRA comes from, for its file."""
        return {
            "run": self.run.id,
            "snapshot": self.snapshot,
            "latents": self.latents.digest,
            "text": self.text.digest,
            "vae": _digest_of_weights(self.latents),
            "encoders": _digest_of_weights(self.text),
            "base": digest_json(self.base),
            "recipe": digest_json(self.recipe.model_dump(mode="json")),
            "version": __version__,
        }

    @property
    def encoders(self) -> tuple[str, ...]:
        """Components of the text encoders that are trained."""
        return trained_encoders(self.recipe)

    @property
    def cached_encoders(self) -> tuple[str, ...]:
        """Components of the text encoders whose part of an embedding is read from the store."""
        return cached_encoders(self.recipe)

    @property
    def missing(self) -> dict[str, int]:
        """How many latents and embeddings are not stored yet, where any are."""
        found = {
            space.kind: len(space.store().missing(keys))
            for space, keys in (
                (self.latents, latent_keys(self.samples)),
                (self.text, text_keys(self.samples) if self.cached_encoders else ()),
            )
        }
        return {kind: count for kind, count in found.items() if count}


def inputs_of(recipe: Recipe, snapshot: Snapshot) -> Inputs:
    """The inputs of a recipe's training.

    Args:
        recipe: its settings and base.
        snapshot: the dataset's current one.

    Raises:
        ModelError: the base lacks the denoiser, or the file to start from is no LoRA.
        RecipeError: the LoRA to start from is missing.
    """
    digests = FileDigests(workspace(recipe).digests)
    base, latents, text = base_of(recipe), latent_space(recipe), text_space(recipe)
    return Inputs(
        recipe=recipe,
        snapshot=snapshot.id,
        samples=usable_samples(snapshot.train, latents.store().quarantined(), text.store().quarantined()),
        latents=latents,
        text=text,
        base={
            name: sorted(digests.digest(path) for path in base.files(name))
            for name in family_of(recipe).parts.denoiser
        },
        start=_digest_of_start(recipe.network.init_from, digests),
    )


def _digest_of_start(path: Path | None, digests: FileDigests) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise RecipeError(
            "There is no such LoRA to start from.",
            where="network.init_from",
            found=path,
            fix=_GIVE_A_LORA,
        )
    try:
        grouped(read_header(path))
    except ModelError as error:
        details = "" if error.found is None else f" ({error.found})"
        raise ModelError(
            "This is no LoRA to start from.",
            where="network.init_from",
            found=f"{path}: {error.what}{details}",
            wanted="a LoRA file, whole, as safetensors",
            fix=_GIVE_A_LORA,
        ) from error
    return digests.digest(path, digest_tensors)


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in settings.items() if key not in _CAME_LATER or _CAME_LATER[key] != value
    }


def _digest_of_weights(space: Space) -> str:
    weights: Any = space.description["weights"]
    return digest_json(weights)
