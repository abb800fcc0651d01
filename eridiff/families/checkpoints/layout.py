"""What the components of a family's base are: folders in diffusers, classes, original names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Names, Shape
from eridiff.families.checkpoints.loranames import LoraNames

Kind = Literal["transformer", "vae", "clip_l", "clip_g", "t5xxl"]
"""What a component is, which is also its name among the recipe's parts; the UNet goes as a transformer."""

KINDS: tuple[Kind, ...] = ("transformer", "vae", "clip_l", "clip_g", "t5xxl")


@dataclass(frozen=True)
class ModelSpec:
    """A component with weights.

    Attributes:
        kind: what it is.
        class_name: its class in diffusers or transformers.
        names: its names in original files, or none where those are transformers' own.
        marks: keys that tell such a component, one a naming.
        facts: the full-size configuration in this package, for files that bring none.
        configure: that configuration with sizes from the shapes of a file's tensors (diffusers' names).
        also: classes with the same weights, whose configuration will do.
        blocks: regular expression of the names of the blocks that it repeats, or nothing.
    """

    kind: Kind
    class_name: str
    names: Names | None
    marks: tuple[str, ...]
    facts: str
    configure: Callable[[dict[str, Any], Mapping[str, Shape]], dict[str, Any]]
    also: tuple[str, ...] = ()
    blocks: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes that a configuration may name."""
        return (self.class_name, *self.also)


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer and the settings that original files leave to the program.

    Attributes:
        kind: which vocabulary; also its folder in the recipe's `model.tokenizers`.
        max_length: tokens of a prompt, padding included.
        pad_token: what fills a prompt up.
    """

    kind: Literal["clip", "t5"]
    max_length: int
    pad_token: str


@dataclass(frozen=True)
class CheckpointLayout:
    """A family's base.

    Attributes:
        family: its name.
        pipelines: classes that `model_index.json` may name.
        models: folder in a diffusers repository to component.
        tokenizers: folder in a diffusers repository to tokenizer.
        scheduler: configuration of the scheduler, for bases that bring none.
        lora: names in LoRA files.
        variant: name of the variant that a denoiser's configuration describes.
        trained: the variants that are trained here.
    """

    family: str
    pipelines: tuple[str, ...]
    models: Mapping[str, ModelSpec]
    tokenizers: Mapping[str, TokenizerSpec]
    scheduler: str
    lora: LoraNames
    variant: Callable[[Mapping[str, Any]], str]
    trained: tuple[str, ...]

    @property
    def denoiser(self) -> str:
        """Folder name of the denoiser."""
        return next(name for name, spec in self.models.items() if spec.kind == "transformer")

    @property
    def blocks(self) -> str:
        """Regular expression of the names of the denoiser's repeated blocks."""
        return self.models[self.denoiser].blocks

    def component(self, kind: Kind) -> str | None:
        """The folder name of a kind of component, or none if the family has no such."""
        return next((name for name, spec in self.models.items() if spec.kind == kind), None)

    def refuse_unknown(self, name: str) -> None:
        """Raise ModelError for a component that the family does not have."""
        if name not in (*self.models, *self.tokenizers, "scheduler"):
            raise ModelError(
                f"{self.family} has no component {name!r}",
                wanted=", ".join([*self.models, *self.tokenizers, "scheduler"]),
            )
