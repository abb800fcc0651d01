"""One component of a base as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Component:
    """Files of a model, a tokenizer or a scheduler.

    Attributes:
        name: its folder's name in a diffusers repository, such as `text_encoder_2`.
        path: its folder, or the original file that holds it.
        weights: safetensors files with its tensors; none for a tokenizer or scheduler.
        config: its configuration; none where the package's facts and the tensors' shapes give it.
        prefix: what stands before its keys in an original file.
        extra: further files that decide what it computes, such as vocabularies.
    """

    name: str
    path: Path
    weights: tuple[Path, ...] = ()
    config: Path | None = None
    prefix: str = ""
    extra: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide what the component computes, sorted."""
        config = () if self.config is None else (self.config,)
        return tuple(sorted({*self.weights, *config, *self.extra}))
