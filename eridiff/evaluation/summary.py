"""What an evaluation says, in words, numbers, sheets and tables: from results to the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eridiff.evaluation.charts import Line
from eridiff.evaluation.comparison import strength_label
from eridiff.evaluation.holdout import Losses
from eridiff.evaluation.metrics import mean_by_subject
from eridiff.evaluation.report import Card, Chart, Figure, Report, Table, training_chart
from eridiff.evaluation.work import BASE, Work, subject_key
from eridiff.images.bucket_report import bucket_rows


@dataclass(frozen=True)
class Summary:
    """An evaluation with its results.

    Attributes:
        work: what was asked for.
        losses: of each subject, by its key; empty without a hold-out.
        scores: of each image, by its key; empty without a metric.
        figures: sheets, by what they show.
    """

    work: Work
    losses: Mapping[str, Losses]
    scores: Mapping[str, float]
    figures: Mapping[str, Path]

    @property
    def loss_words(self) -> str | None:
        """Loss on the hold-out before and after, and the change with its standard error."""
        if not self.losses:
            return None
        base, final = self._base, self._final
        return f"{base.mean:.4f} before, {final.mean:.4f} after ({change_words(final, base)})"

    @property
    def score_words(self) -> str | None:
        """Mean score of the base and of the final LoRA at each strength."""
        means = [(strength, mean) for label, strength, mean in self._means if label in (BASE, self._label)]
        return ", ".join(f"{strength_label(strength)}: {mean:.3f}" for strength, mean in means) or None

    def report(self) -> Report:
        """The page."""
        work = self.work
        trained, held = len(work.snapshot.train), len(work.snapshot.holdout)
        subtitle = f"{work.settings.family} on {work.settings.base_name}, {trained} images, {held} held out"
        return Report(
            title=work.run.name,
            subtitle=f"{subtitle}, run {work.run.id[:12]}",
            cards=tuple(self._cards()),
            figures=tuple(Figure(caption, path) for caption, path in self.figures.items()),
            charts=tuple(self._charts()),
            tables=tuple(self._tables()),
            recipe=work.run.recipe.read_text(encoding="utf-8"),
        )

    @property
    def _label(self) -> str:
        return self.work.final.label

    @property
    def _base(self) -> Losses:
        return self.losses[BASE]

    @property
    def _final(self) -> Losses:
        return self.losses[subject_key(self.work.final)]

    @cached_property
    def _means(self) -> list[tuple[str, float, float]]:
        if not self.scores:
            return []
        means = mean_by_subject(self.work.pictures, self.scores)
        return [(label, strength, mean) for (label, strength), mean in means.items()]

    @cached_property
    def _metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.work.run.metrics)

    def _cards(self) -> Iterator[Card]:
        recipe = self.work.recipe
        if self.losses:
            base, final = self._base, self._final
            value = f"{base.mean:.4f} \N{RIGHTWARDS ARROW} {final.mean:.4f}"
            yield Card("Hold-out loss", value, change_words(final, base), better=final.mean < base.mean)
        own = [(strength, mean) for label, strength, mean in self._means if label in (BASE, self._label)]
        if own:
            arrow = " \N{RIGHTWARDS ARROW} "
            words = arrow.join(strength_label(strength) for strength, _ in own)
            yield Card("Score", arrow.join(f"{mean:.2f}" for _, mean in own), words)
        rows, train = self._metrics, recipe.train
        ms = [row["ms_per_step"] for row in rows if "ms_per_step" in row]
        pace = f"{sum(ms) / len(ms):.0f} ms a step, " if ms else ""
        yield Card("Training", f"{train.steps} steps", f"{pace}batch {train.batch_size}, lr {train.lr:g}")
        size = self.work.final.path.stat().st_size
        network = recipe.network
        yield Card(
            "LoRA file", f"{size / 1e6:.1f} MB", f"rank {network.linear}, alpha {network.linear_alpha:g}"
        )

    def _charts(self) -> Iterator[Chart]:
        rows = [row for row in self._metrics if "loss" in row]
        if len(rows) > 1:
            yield training_chart([row["step"] for row in rows], [row["loss"] for row in rows])
        if not self.losses:
            return
        taken = {lora.step if lora else 0: self.losses[subject_key(lora)] for lora in self.work.subjects}
        points = tuple((float(step), losses.mean) for step, losses in taken.items())
        yield Chart("Hold-out loss by checkpoint", (Line("hold-out", points, "a", True),), "step", "loss")
        times = self.work.grid.times
        curves = (("base", self._base, "b"), (self._label, self._final, "a"))
        lines = tuple(
            Line(name, tuple(zip(times, taken.by_time, strict=True)), style, True)
            for name, taken, style in curves
        )
        yield Chart("Hold-out loss by time: 0 is the image, 1 is noise", lines, "t", "loss")

    def _tables(self) -> Iterator[Table]:
        if self.losses:
            yield self._loss_table()
        if self._means:
            rows = tuple((label, f"{s:g}", f"{mean:.4f}") for label, s, mean in self._means)
            name = f"Mean of {self.work.recipe.sample.metric} over prompts and seeds."
            yield Table("Scores", ("LoRA", "strength", "score"), rows, name, numbers=frozenset({1, 2}))
        yield bucket_table(self.work)
        if self.work.snapshot.quarantined:
            entries = tuple((entry.source, entry.reason) for entry in self.work.snapshot.quarantined)
            note = "Files that were left out. They were not changed."
            yield Table("Quarantine", ("file", "reason"), entries, note, paths=frozenset({0}))
        yield from provenance_tables(self.work)
        yield Table("Files", ("what", "where"), tuple(self._files()), paths=frozenset({1}))

    def _loss_table(self) -> Table:
        rows = []
        for lora in self.work.subjects:
            taken = self.losses[subject_key(lora)]
            name = lora.label if lora else "base"
            rows.append((name, f"{taken.mean:.5f}", change_words(taken, self._base) if lora else ""))
        lowest = min(rows, key=lambda row: float(row[1]))[0]
        grid = self.work.grid
        note = (
            f"{len(grid.samples)} held-out images at {len(grid.times)} times, the same noise for every row. "
            f"Lowest: {lowest}."
        )
        return Table("Hold-out", ("LoRA", "loss", "change from base"), tuple(rows), note, frozenset({1, 2}))

    def _files(self) -> Iterator[tuple[str, str]]:
        for lora in reversed(self.work.loras):
            yield f"LoRA, {lora.label}", str(lora.path)
        for caption, path in self.figures.items():
            yield caption, str(path)
        yield "sampled images", str(self.work.images)
        yield "run", str(self.work.run.folder)


def change_words(losses: Losses, base: Losses) -> str:
    """The change from `base` in per cent, with its standard error over images."""
    change = losses.change_from(base)
    share = 100 * change.mean / base.mean
    digits = 1 if abs(share) >= 1 else 2
    if change.error is None:
        return f"{share:+.{digits}f} %"
    return f"{share:+.{digits}f} \N{PLUS-MINUS SIGN} {100 * change.error / base.mean:.{digits}f} %"


def bucket_table(work: Work) -> Table:
    """How the images fill their buckets."""
    rows = tuple(
        (
            f"{row.width} \N{MULTIPLICATION SIGN} {row.height}",
            str(row.images),
            str(row.held_out),
            str(row.seen_an_epoch),
            f"{row.mean_crop_loss:.1%}",
            f"{row.worst_crop_loss:.1%}",
            str(row.enlarged),
        )
        for row in bucket_rows(work.snapshot.samples)
    )
    names = ("bucket px", "images", "held out", "seen an epoch", "cropped away", "at worst", "enlarged")
    return Table("Buckets", names, rows, numbers=frozenset(range(1, 7)))


def provenance_tables(work: Work) -> Iterator[Table]:
    """What the LoRA was made from, and with."""
    known = json.loads(work.run.environment.read_text(encoding="utf-8"))
    made_from = {
        "base model": work.settings.base_name,
        **known.pop("provenance", {}),
        "tensors": work.final.digest,
    }
    note = "Digests (sha256) of what decided this LoRA, and of its tensors."
    paths = frozenset({1})
    yield Table("Provenance", ("what", "value"), tuple(_flat(made_from, "")), note, paths=paths)
    yield Table("Environment", ("what", "value"), tuple(_flat(known, "")), paths=paths)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file; a last one that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)
