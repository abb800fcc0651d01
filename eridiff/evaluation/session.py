"""Losses and images of a whole evaluation, with one pipeline loaded once for everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from eridiff.compiler_errors import compiler_errors
from eridiff.devices import DTYPES, worth_compiling
from eridiff.encoding.spaces import base_of, family_of
from eridiff.encoding.wanted import prompts_of
from eridiff.evaluation.pictures import LoraFile, batches
from eridiff.evaluation.results import LossFile
from eridiff.evaluation.sampling import AttachedLora, attached, sample_missing
from eridiff.evaluation.spoken import Spoken
from eridiff.evaluation.validation import validate
from eridiff.evaluation.work import Work, subject_key
from eridiff.families import live as live_text
from eridiff.families.base import ModelFamily
from eridiff.families.frozen.keep import Keep
from eridiff.families.live import LiveText
from eridiff.lora.encoders import NO_ENCODERS, is_of_encoder
from eridiff.lora.read import read_lora
from eridiff.quiet import unsaid
from eridiff.store.snapshots import text_key
from eridiff.training.attention import attention
from eridiff.training.cached import Cached, Encoded
from eridiff.training.compiling import compile_blocks
from eridiff.training.offload import offload_blocks

BREAK_EVEN = 800
"""Images from which on `sample.compile: auto` wins time for SDXL: 40 s of compiling, as the base and again
with a LoRA, against 0.1 s saved an image."""

Progress = Callable[[int], None]
"""Called with the number of things done since the last call; may raise to stop."""


@dataclass(frozen=True)
class Session:
    """A pipeline on its device and what it is fed.

    Attributes:
        work: what is to be made.
        family: whose pipeline it is.
        pipeline: diffusers' own, without text encoders.
        cached: latents of the hold-out, embeddings of captions and prompts.
        device: where the pipeline lies.
    """

    work: Work
    family: ModelFamily
    pipeline: Any
    cached: Cached
    device: torch.device

    @property
    def denoiser(self) -> nn.Module:
        """The pipeline's, with whatever LoRA is attached."""
        (place,) = self.family.parts.denoiser
        return getattr(self.pipeline, place)

    def take_losses(self, file: LossFile, progress: Progress) -> None:
        """Takes the losses of those subjects that the file lacks, and keeps each subject's at once."""
        work, taken = self.work, file.read()
        labels = {subject_key(lora): lora.label if lora else "base" for lora in work.subjects}
        for lora in work.subjects:
            if subject_key(lora) in taken:
                continue
            with self._carrying(lora) as carried:
                taken[subject_key(lora)] = validate(
                    self.family,
                    self.denoiser,
                    carried.encoded(),
                    work.grid,
                    batch_size=work.recipe.validation.batch_size,
                    device=self.device,
                    on_batch=progress,
                )
            # Losses of LoRAs that are no longer asked about are let go.
            file.write(work.grid, {key: taken[key] for key in labels if key in taken}, labels)

    @compiler_errors("sample.compile")
    def make_images(self, progress: Progress) -> int:
        """Makes the images that are missing and returns the bytes written."""
        work, written = self.work, 0
        wanted, num_missing = work.recipe.sample.compile, len(work.missing_pictures)
        if worth_compiling(wanted, self.device, num_items=num_missing, break_even=BREAK_EVEN):
            compile_blocks(self.denoiser, self.family.blocks)
        cut = batches(work.pictures, work.recipe.sample.batch_size)
        for lora in dict.fromkeys(batch[0].lora for batch in cut):
            own = [batch for batch in cut if batch[0].lora == lora]
            if all(picture.path(work.images).exists() for batch in own for picture in batch):
                continue
            with self._carrying(lora) as carried:
                for strength in dict.fromkeys(batch[0].strength for batch in own):
                    carried.set_strength(strength)
                    alike = [batch for batch in own if batch[0].strength == strength]
                    written += sample_missing(
                        self.family, self.pipeline, carried.encoded(), alike, work.images, on_batch=progress
                    )
        return written

    @cached_property
    def live(self) -> LiveText:
        """The text encoders that a LoRA may change, loaded when this is first asked."""
        recipe = self.work.recipe
        dtype = DTYPES[recipe.precompute.text_dtype]
        return live_text.load(self.family, base_of(recipe), device=self.device, dtype=dtype)

    @contextmanager
    def _carrying(self, lora: LoraFile | None) -> Iterator[_Carried]:
        if lora is None:
            yield _Carried(self, None, None)
            return
        read = read_lora(lora.path, self.family)
        live = self.live if any(map(is_of_encoder, read.layers)) else None
        encoders = live.models if live else NO_ENCODERS
        with attached(self.pipeline, read.peft_state(), encoders) as inside:
            yield _Carried(self, inside, live)


@dataclass(frozen=True)
class _Carried:
    """What a session's pipeline carries: a LoRA, which may have changed text encoders, or nothing."""

    session: Session
    lora: AttachedLora | None
    live: LiveText | None

    def set_strength(self, strength: float) -> None:
        """Multiplies the LoRA's change by `strength`; the base has none."""
        if self.lora is not None:
            self.lora.set_strength(strength)

    def encoded(self) -> Encoded:
        """Latents, and embeddings as the LoRA makes them at its present strength."""
        cached = self.session.cached
        return cached if self.live is None else Spoken(cached, self.live, self.session.device)


@contextmanager
def opened(work: Work, device: torch.device) -> Iterator[Session]:
    """A session whose attention runs on the backends of the recipe's `train.attention`, as in training.

    They take the denoiser's heads, since it was trained under them. The VAE's one head of 512, which most
    refuse, goes through none of them on a GPU: see `families.vae_attention`.

    Raises:
        ModelError: a component is missing or does not fit, or no such backend takes its attention.
        StoreError: a latent or an embedding is missing: it says to run precompute.
    """
    family = family_of(work.recipe)
    cached = _cached(work)
    train = work.recipe.train
    dtype, share = DTYPES[train.dtype], 1.0 if train.shard_base else train.offload  # one process has no peers
    keep = Keep(work.recipe.model.quantize, share)
    # Pipelines name classes for reading images, which nothing here uses.
    with unsaid("transformers.utils.import_utils", "requires torchvision"):
        pipeline = family.load_pipeline(base_of(work.recipe), device=device, dtype=dtype, keep=keep)
    session = Session(work, family, pipeline, cached, device)
    if share:
        offload_blocks(session.denoiser, family.checkpoint.blocks, share, device)
    with attention(train.attention):
        yield session


def _cached(work: Work) -> Cached:
    samples = work.grid.samples
    texts = prompts_of(work.recipe) | {sample.captions[0] for sample in samples}
    latents = [sample.latent_key(False) for sample in samples]
    return Cached(work.latents.open(latents), work.text.open([text_key(text) for text in texts]))
