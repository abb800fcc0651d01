"""What decides a sampled image, its name, and the words kept inside its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eridiff.store.files import digest_json

SAMPLING_VERSION = 1
"""Raised when the same request gives another image."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file as a user would load it; `digest` is of its tensors, whatever its metadata."""

    label: str
    step: int
    path: Path
    digest: str


@dataclass(frozen=True)
class Settings:
    """What all images of an evaluation share.

    Attributes:
        base: digest of the weights of denoiser and VAE, and in what the denoiser's are kept, if in few bits.
        base_name: what the recipe calls the base.
        text_space: the store space of the prompt embeddings.
        family: name of the model family.
        options: the family's options.
        negative: negative prompt.
        width_px: width of an image.
        height_px: height of an image.
        steps: steps of the sampler.
        guidance: guidance scale.
        dtype: precision of the pipeline.
    """

    base: str
    base_name: str
    text_space: str
    family: str
    options: dict[str, Any]
    negative: str
    width_px: int
    height_px: int
    steps: int
    guidance: float
    dtype: str


@dataclass(frozen=True)
class Picture:
    """One image to sample; without a LoRA it is the base's."""

    prompt: str
    seed: int
    strength: float
    lora: LoraFile | None
    settings: Settings

    @property
    def key(self) -> str:
        """Digest of all that decides the image: neither names of files nor labels, but their content."""
        shared = asdict(self.settings)
        del shared["base_name"]
        own = {"prompt": self.prompt, "seed": self.seed, "strength": float(self.strength)}
        lora = self.lora.digest if self.lora else None
        return digest_json({"version": SAMPLING_VERSION, **shared, **own, "lora": lora})

    def path(self, folder: Path) -> Path:
        """Where the image lies in `folder`."""
        return folder / f"{self.key}.png"

    def metadata(self) -> dict[str, str]:
        """The words kept in the PNG."""
        shared = self.settings
        return {
            "prompt": self.prompt,
            "negative": shared.negative,
            "seed": str(self.seed),
            "strength": f"{self.strength:g}",
            "checkpoint": self.lora.label if self.lora else "base",
            "lora": self.lora.path.name if self.lora else "none",
            "lora_digest": self.lora.digest if self.lora else "none",
            "steps": str(shared.steps),
            "guidance": f"{shared.guidance:g}",
            "size": f"{shared.width_px}x{shared.height_px}",
            "base": shared.base_name,
            "base_digest": shared.base,
            "software": "eridiff",
        }


def all_pictures(
    prompts: Sequence[str],
    seeds: Sequence[int],
    strengths: Sequence[float],
    loras: Sequence[LoraFile],
    settings: Settings,
) -> tuple[Picture, ...]:
    """Prompts x seeds x strengths x LoRAs; the base's images (strength 0) once, before all others."""
    subjects: list[tuple[float, LoraFile | None]] = [(0.0, None)] if 0 in strengths else []
    subjects += [(strength, lora) for lora in loras for strength in strengths if strength]
    made = (
        Picture(prompt, seed, strength, lora, settings)
        for strength, lora in subjects
        for prompt in prompts
        for seed in seeds
    )
    return tuple({picture.key: picture for picture in made}.values())


def batches(pictures: Sequence[Picture], batch_size: int) -> list[tuple[Picture, ...]]:
    """Pictures in order, cut into batches of one LoRA and strength.

    Which images share a batch depends on the whole list and not on what is missing: an image made after a
    restart equals the one made without it, to the bit.
    """
    cut: list[list[Picture]] = []
    for picture in pictures:
        alike = cut and (cut[-1][0].lora, cut[-1][0].strength) == (picture.lora, picture.strength)
        if alike and len(cut[-1]) < batch_size:
            cut[-1].append(picture)
        else:
            cut.append([picture])
    return [tuple(batch) for batch in cut]
