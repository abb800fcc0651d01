"""Precompute: VAE latents and prompt embeddings to disk, each once.

The two halves need nothing of each other and can run on different machines, each in parts. What is stored is
found by key, so any run makes only what is missing, and a killed one goes on where it was.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from eridiff.encoding.spaces import (
    Space,
    base_of,
    family_of,
    latent_space,
    remember,
    text_space,
    vae_dtype,
    what_changed,
)
from eridiff.encoding.wanted import (
    LatentJob,
    Part,
    of_part,
    prompts_of,
    usable_samples,
    wanted_captions,
    wanted_latents,
)
from eridiff.encoding.writer import PartWriter
from eridiff.errors import DataError, Interrupted, StoreError
from eridiff.recipe import Recipe
from eridiff.store.parts import Item, TensorStore
from eridiff.store.snapshots import Snapshot, text_key
from stages.dataset import current_snapshot, workspace
from stages.stage import StagePlan, StageReport, progress, stopping

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("eridiff")

Half = Literal["all", "latents", "text"]
Outcomes = Generator[Mapping[str, Item | str], None, None]
"""Batches of what was made: for each key the item, or the reason why there is none."""

_WHOLE: Part = (1, 1)
_FLOAT32_BYTES = 4
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class _Work:
    """One half of a recipe's work, or a share of it.

    Attributes:
        space: where its items belong.
        store: the space's items.
        wanted: keys of all items that the recipe wants, in the order in which they are made.
        part: which share of them this run is about.
        encode: makes the items of some keys.
        nbytes: about how large the items of some keys are.
    """

    space: Space
    store: TensorStore
    wanted: Collection[str]
    part: Part
    encode: Callable[[Sequence[str]], Outcomes]
    nbytes: Callable[[Sequence[str]], int]

    @cached_property
    def keys(self) -> list[str]:
        """Keys of this share."""
        return of_part(self.wanted, self.part)

    def rejected(self) -> dict[str, str]:
        """Items of all shares that cannot be made, with the reasons."""
        return {key: reason for key, reason in self.store.quarantined().items() if key in self.wanted}

    @cached_property
    def quarantined(self) -> frozenset[str]:
        """Keys of this share that cannot be made, as of when this was first asked."""
        return frozenset(self.rejected()).intersection(self.keys)

    @cached_property
    def missing(self) -> list[str]:
        """Keys of this share that are to be made, as of when this was first asked."""
        return [key for key in self.store.missing(self.keys) if key not in self.quarantined]


def plan(recipe: Recipe, *, half: Half = "all", part: Part = _WHOLE) -> StagePlan:
    """What `run` would make, by looking at keys alone.

    Raises:
        ModelError: the base lacks an encoder whose outputs were never made.
    """
    snapshot = _snapshot_if_any(recipe)
    works = _works(recipe, snapshot, half, part)
    details = {work.space.kind: _why(work) for work in works if work.missing}
    missing = sum(len(work.missing) for work in works)
    quarantined = sum(len(work.quarantined) for work in works)
    return StagePlan(
        "precompute",
        done=sum(len(work.keys) for work in works) - missing - quarantined,
        missing=missing if snapshot else max(missing, 1),
        quarantined=quarantined,
        bytes_to_write=sum(work.nbytes(work.missing) for work in works),
        details=details if snapshot else {**details, "images": "not ingested yet"},
    )


def run(recipe: Recipe, *, half: Half = "all", part: Part = _WHOLE) -> StageReport:
    """Makes what is missing; loads encoders only if something of their half is.

    Args:
        recipe: whose images and prompts.
        half: `latents`, `text`, or both, one after the other.
        part: `(i, n)`: only the i-th of n shares, counted from 1.

    Raises:
        DataError: nothing was ingested, or more is unusable than `ingest.max_quarantine`.
        StoreError: the disk is full, or an image shard is damaged.
        ModelError: an encoder is missing, or does not fit the device.
        Interrupted: the process was asked to stop; what was finished is kept.
    """
    started = time.monotonic()
    snapshot = current_snapshot(recipe)
    works = _works(recipe, snapshot, half, part)
    written = sum(_make(recipe, snapshot, work) for work in works)
    quarantined = sum(len(work.rejected().keys() & set(work.keys)) for work in works)
    before = sum(len(work.quarantined) for work in works)
    missing = sum(len(work.missing) for work in works)
    return StageReport(
        "precompute",
        done=missing - (quarantined - before),
        reused=sum(len(work.keys) for work in works) - missing - before,
        quarantined=quarantined,
        seconds=time.monotonic() - started,
        bytes_written=written,
        outputs={work.space.kind: str(work.store.folder) for work in works},
    )


def _snapshot_if_any(recipe: Recipe) -> Snapshot | None:
    try:
        return current_snapshot(recipe)
    except DataError:  # nothing was ingested yet: a plan can still name the prompts
        return None


def _works(recipe: Recipe, snapshot: Snapshot | None, half: Half, part: Part) -> list[_Work]:
    makers = {"latents": _latent_work, "text": _text_work}
    return [make(recipe, snapshot, part) for name, make in makers.items() if half in ("all", name)]


def _latent_work(recipe: Recipe, snapshot: Snapshot | None, part: Part) -> _Work:
    jobs = {} if snapshot is None else wanted_latents(snapshot)
    latent = family_of(recipe).latent

    def nbytes(keys: Sequence[str]) -> int:
        samples = [jobs[key].sample for key in keys]
        cells = sum(sample.bucket_height * sample.bucket_width for sample in samples) // latent.stride**2
        return 2 * latent.channels * cells * _FLOAT32_BYTES

    space = latent_space(recipe)
    return _Work(
        space,
        space.store(),
        jobs.keys(),
        part,
        lambda keys: _encode_latents(recipe, [jobs[key] for key in keys]),
        nbytes,
    )


def _text_work(recipe: Recipe, snapshot: Snapshot | None, part: Part) -> _Work:
    captions = wanted_captions(recipe, snapshot)
    space = text_space(recipe)
    store = space.store()
    return _Work(
        space,
        store,
        captions.keys(),
        part,
        lambda keys: _encode_text(recipe, {key: captions[key] for key in keys}),
        lambda keys: len(keys) * store.nbytes() // max(len(store.keys()), 1),
    )


def _make(recipe: Recipe, snapshot: Snapshot, work: _Work) -> int:
    """Makes what is missing and proves that nothing is left; returns the bytes written."""
    remember(recipe, work.space)
    rejected = work.rejected()
    _refuse_if_too_bad(recipe, snapshot, work, rejected)
    if not work.missing:
        return 0
    work.store.describe(work.space.description)
    work.store.remove_abandoned()
    with (
        stopping() as stop,
        closing(work.encode(work.missing)) as batches,
        progress(work.space.kind, len(work.keys), done=len(work.keys) - len(work.missing)) as meter,
        PartWriter(work.store, part_items=recipe.precompute.part_samples) as writer,
    ):
        for outcomes in batches:
            writer.add(outcomes)
            meter.advance(len(outcomes))
            if new := {key: reason for key, reason in outcomes.items() if isinstance(reason, str)}:
                rejected |= new
                if _too_bad(recipe, snapshot, rejected):
                    break
            if stop:
                break
    _refuse_if_too_bad(recipe, snapshot, work, rejected)
    if left := [key for key in work.store.missing(work.keys) if key not in rejected]:
        if stop:
            raise Interrupted(
                f"Precompute was stopped; {len(left)} of {len(work.keys)} {work.space.kind} are left.",
                fix="run the same command again: it goes on from here",
            )
        raise StoreError(
            f"{len(left)} {work.space.kind} are not in the store although they were written.",
            where=work.store.folder,
            found=f"no item {left[0]}",
            fix="run the same command again",
        )
    return writer.bytes_written


def _encode_latents(recipe: Recipe, jobs: Sequence[LatentJob]) -> Outcomes:
    from eridiff.compiler_errors import compiler_errors
    from eridiff.devices import DTYPES, find_device, reserved
    from eridiff.encoding.compiling import compile_vae, sizes_to_compile
    from eridiff.encoding.latents import LatentEncoder, encode_latents

    family, device, settings = family_of(recipe), find_device(recipe.device), recipe.precompute
    with reserved(device), compiler_errors("precompute.compile"):
        vae = family.load_vae(base_of(recipe), device=device, dtype=DTYPES[vae_dtype(recipe)])
        sizes = sizes_to_compile(
            settings.compile,
            (job.size for job in jobs),
            device=device,
            tile_above_px=settings.tile_above_px,
        )
        if sizes:
            compile_vae(vae, sizes)
        yield from encode_latents(
            LatentEncoder(family, vae, settings.tile_above_px),
            workspace(recipe).images,
            jobs,
            batch_size=settings.latent_batch_size,
            fill_batches_of=sizes,
        )
        del vae  # which the device is to have back


def _encode_text(recipe: Recipe, captions: Mapping[str, str]) -> Outcomes:
    from eridiff.compiler_errors import compiler_errors
    from eridiff.devices import DTYPES, find_device, reserved, worth_compiling
    from eridiff.encoding.compiling import BREAK_EVEN_TEXTS, compile_text_encoders
    from eridiff.encoding.text import encode_texts

    family, device, base = family_of(recipe), find_device(recipe.device), base_of(recipe)
    wanted = recipe.precompute.compile
    compiled = worth_compiling(wanted, device, num_items=len(captions), break_even=BREAK_EVEN_TEXTS)

    def load(dtype: torch.dtype) -> Any:
        encoders = family.load_text_encoders(base, device=device, dtype=dtype)
        if compiled:
            compile_text_encoders(encoders)
        return encoders

    with reserved(device), compiler_errors("precompute.compile"):
        yield from encode_texts(
            family,
            load,
            captions,
            device=device,
            dtype=DTYPES[recipe.precompute.text_dtype],
            batch_size=recipe.precompute.text_batch_size,
            fill_batches=compiled,
        )


def _too_bad(recipe: Recipe, snapshot: Snapshot, rejected: Mapping[str, str]) -> bool:
    """Whether a prompt cannot be embedded, or more samples are unusable than the recipe allows."""
    if any(text_key(prompt) in rejected for prompt in prompts_of(recipe)):
        return True
    num_usable = len(usable_samples(snapshot.samples, rejected, rejected))
    num_bad = len(snapshot.samples) - num_usable
    return num_bad > recipe.ingest.max_quarantine * len(snapshot.samples)


def _refuse_if_too_bad(recipe: Recipe, snapshot: Snapshot, work: _Work, rejected: Mapping[str, str]) -> None:
    if not rejected or not _too_bad(recipe, snapshot, rejected):
        return
    shown = [f"{key}: {reason}" for key, reason in list(rejected.items())[:_REASONS_SHOWN]]
    raise DataError(
        f"Too many {work.space.kind} cannot be made.",
        where=work.store.folder / "quarantine",
        found=f"{len(rejected)} of {len(work.wanted)}: " + "; ".join(shown),
        wanted=f"all prompts, and at most {recipe.ingest.max_quarantine:.0%} of the samples lost",
        fix="take these images out, or raise ingest.max_quarantine; delete that folder to try them again",
    )


def _why(work: _Work) -> str:
    text = f"{len(work.missing)} of {len(work.keys)} to encode"
    if work.store.keys() or not (changes := what_changed(work.space)):
        return text
    return f"{text}, since {' and '.join(changes)} changed"


if __name__ == "__main__":
    from stages import cli

    cli.main(["precompute", *sys.argv[1:]])
