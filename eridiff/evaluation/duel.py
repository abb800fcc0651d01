"""Two LoRAs on one hold-out: the same images, times and noise, the same prompts and seeds, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.errors import DataError
from eridiff.evaluation.comparison import by_checkpoint
from eridiff.evaluation.grid import Captions, compose
from eridiff.evaluation.holdout import Losses
from eridiff.evaluation.pictures import LoraFile
from eridiff.evaluation.results import LossFile
from eridiff.evaluation.work import BASE, Work, subject_key
from eridiff.store.files import atomic_path

if TYPE_CHECKING:
    import torch

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Duel:
    """A finished run's LoRA against the champion, on the run's own hold-out.

    Attributes:
        work: the run's evaluation; its final LoRA is the challenger.
        champion: None where there is none yet: the base is then the rival.
    """

    work: Work
    champion: LoraFile | None

    @property
    def both(self) -> Work:
        """The evaluation with these two LoRAs instead of the run's checkpoints."""
        sample = self.work.recipe.sample.model_copy(update={"checkpoints": "all"})
        loras = (self.champion, self.work.final) if self.champion else (self.work.final,)
        return replace(self.work, recipe=self.work.recipe.model_copy(update={"sample": sample}), loras=loras)

    @property
    def missing_points(self) -> int:
        """Losses that are to be taken."""
        taken = self._taken()
        lacking = [subject for subject in self.both.subjects if subject_key(subject) not in taken]
        return len(lacking) * len(self.work.grid.samples) * len(self.work.grid.times)

    @property
    def missing_pictures(self) -> int:
        """Images that are to be sampled."""
        return len(self.both.missing_pictures)

    @property
    def sheet(self) -> Path:
        """Where the sheet lies that shows base, champion and challenger."""
        return self.work.run.evaluation / "champion.png"

    def fight(self, on_progress: Progress) -> None:
        """Takes what is missing, with one pipeline; what the run's own evaluation made is not made again.

        Args:
            on_progress: called with the number of losses or images made since the last call.

        Raises:
            ModelError: a LoRA does not fit the base.
            StoreError: a latent or an embedding is missing.
        """
        from eridiff.devices import find_device, reserved

        both = self.both
        labels = {subject_key(subject): subject.label if subject else BASE for subject in both.subjects}
        self._file.write(
            both.grid, {key: losses for key, losses in self._taken().items() if key in labels}, labels
        )
        device = find_device(both.recipe.device)
        with reserved(device):
            self._make(device, on_progress)

    def _make(self, device: torch.device, on_progress: Progress) -> None:
        from eridiff.evaluation.session import opened

        with opened(self.both, device) as session:
            session.take_losses(self._file, on_progress)
            session.make_images(on_progress)

    def losses(self) -> tuple[Losses, Losses]:
        """Losses of the challenger and of its rival.

        Raises:
            DataError: nothing is held out, so nothing can be compared.
        """
        if not self.both.subjects:
            raise DataError(
                "Two LoRAs can only be compared on images that neither was trained on.",
                found="no hold-out",
                fix="raise ingest.holdout, so that some image is held out, and validation.images above 0",
            )
        taken = self._taken()
        return taken[subject_key(self.work.final)], taken[subject_key(self.champion)]

    def draw(self) -> Path | None:
        """Draws the sheet from the sampled images; None where no LoRA was sampled."""
        both, sample = self.both, self.both.recipe.sample
        seeds, strengths = tuple(dict.fromkeys(sample.seeds)), tuple(dict.fromkeys(sample.strengths))
        if not both.prompts or not any(strengths):
            return None
        shown = by_checkpoint(both.prompts, seeds, strengths, both.loras, both.settings)
        tiles = [[picture.path(both.images) for picture in line] for line in shown.cells]
        words = Captions(both.recipe.name, "champion and challenger", f"run {both.run.id[:12]}")
        with atomic_path(self.sheet) as temporary:
            compose(tiles, shown.rows, shown.columns, words).save(temporary, format="PNG")
        return self.sheet

    @property
    def _file(self) -> LossFile:
        return LossFile(self.work.run.evaluation / "champion.json", self.work.grid_digest)

    def _taken(self) -> dict[str, Losses]:
        """Losses that are known, by this duel or by the run's own evaluation."""
        own = LossFile(self.work.run.evaluation / "validation.json", self.work.grid_digest)
        return own.read() | self._file.read()
