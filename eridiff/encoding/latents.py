"""Images to posterior moments: batches of one shape through the VAE, tiled where they are large."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from eridiff.devices import tf32_products
from eridiff.encoding.batching import Batcher, finite_rows
from eridiff.encoding.pixels import read_pixels, to_values
from eridiff.encoding.transfer import Arriving, stacked
from eridiff.encoding.wanted import LatentJob
from eridiff.families.base import ModelFamily, Moments
from eridiff.images.formats import UnusableImage
from eridiff.store.parts import Item
from eridiff.store.paths import AnyPath
from eridiff.tensors import to_stored

NOT_FINITE = "its latents are not finite, in float32 either"


@dataclass(frozen=True)
class LatentEncoder:
    """A family's VAE, ready to encode.

    Attributes:
        family: whose VAE it is.
        vae: from `family.load_vae`.
        tile_above_px: images with a longer side are encoded in tiles.
    """

    family: ModelFamily
    vae: Any
    tile_above_px: int

    def start(self, pixels: Sequence[np.ndarray]) -> Callable[[], list[Moments | None]]:
        """Starts the encoding of images of one shape; what it returns waits for their moments.

        They are `[C, h, w]` float32 on the CPU; `None` where not finite. What is not finite in the VAE's own
        precision is encoded again in float32.

        Args:
            pixels: each `[H, W, 3]` uint8.
        """
        arriving = self._start(pixels)
        return lambda: self._finish(arriving, pixels)

    def _finish(self, arriving: Arriving, pixels: Sequence[np.ndarray]) -> list[Moments | None]:
        rows = _rows(arriving)
        bad = [number for number, row in enumerate(rows) if row is None]
        if bad and self.vae.dtype != torch.float32:
            for number, row in zip(bad, self._in_float32([pixels[number] for number in bad]), strict=True):
                rows[number] = row
        return rows

    def _in_float32(self, pixels: Sequence[np.ndarray]) -> list[Moments | None]:
        def start(batch: Sequence[np.ndarray]) -> Callable[[], list[Moments | None]]:
            return partial(_rows, self._start(batch))

        dtype = self.vae.dtype
        self.vae.float()
        try:
            return [
                row for rows in Batcher(len(pixels), self.vae.device).encode([pixels], start) for row in rows
            ]
        finally:
            self.vae.to(dtype)

    def _start(self, pixels: Sequence[np.ndarray]) -> Arriving:
        device = self.vae.device
        values = to_values(stacked(pixels, device))
        tiled = max(values.shape[-2:]) > self.tile_above_px
        if tiled:
            self.vae.enable_tiling()
        try:
            with tf32_products(device):
                moments = self.family.encode_images(self.vae, values)
        finally:
            if tiled:
                self.vae.disable_tiling()
        return Arriving(moments.mean, moments.logvar, finite_rows(moments.mean, moments.logvar))


def encode_latents(
    encoder: LatentEncoder,
    images: AnyPath,
    jobs: Sequence[LatentJob],
    *,
    batch_size: int,
    fill_batches_of: Collection[tuple[int, int]] = (),
) -> Iterator[Mapping[str, Item | str]]:
    """Latents of jobs, batch after batch: for each key the item, or the reason why there is none.

    Args:
        encoder: the VAE.
        images: the folder of image shards.
        jobs: with equal shapes beside each other.
        batch_size: images of one shape at once.
        fill_batches_of: heights and widths of which the last image is encoded along again where a batch is
            smaller, since an encoder compiled for them would be compiled again for another number.

    Raises:
        StoreError: an image shard is missing or damaged.
        ModelError: not even one image fits into the device's memory.
    """
    with closing(read_pixels(images, jobs, ahead=2 * batch_size)) as decoded:
        batches = (
            [*zip(batch, islice(decoded, len(batch)), strict=True)] for batch in _batches(jobs, batch_size)
        )
        batcher = Batcher(batch_size, encoder.vae.device)

        def start(batch: Sequence[Decoded]) -> Callable[[], list[Outcome]]:
            filled = batcher.batch_size if batch[0][0].size in fill_batches_of else 0
            return _start(encoder, batch, filled)

        for outcomes in batcher.encode(batches, start):
            yield dict(outcomes)


Decoded = tuple[LatentJob, np.ndarray | UnusableImage]
Outcome = tuple[str, Item | str]


def _start(encoder: LatentEncoder, batch: Sequence[Decoded], filled: int) -> Callable[[], list[Outcome]]:
    """Starts a batch of at least `filled` images; what it returns waits for the outcome of each one's own."""
    bad: list[Outcome] = [(job.key, found.reason) for job, found in batch if isinstance(found, UnusableImage)]
    usable = [(job, found) for job, found in batch if not isinstance(found, UnusableImage)]
    if not usable:
        return lambda: bad
    pixels = [pixels for _, pixels in usable]
    finish = encoder.start(pixels + pixels[-1:] * (filled - len(pixels)))
    keys = [job.key for job, _ in usable]
    return lambda: [*bad, *map(_outcome, keys, finish())]


def _outcome(key: str, moments: Moments | None) -> Outcome:
    if moments is None:
        return key, NOT_FINITE
    return key, Item(key, {"mean": to_stored(moments.mean), "logvar": to_stored(moments.logvar)})


def _batches(jobs: Sequence[LatentJob], batch_size: int) -> Iterator[list[LatentJob]]:
    """Jobs of one shape, at most `batch_size` of them; no job is left out."""
    for _, group in groupby(jobs, key=lambda job: job.size):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _rows(arriving: Arriving) -> list[Moments | None]:
    mean, logvar, finite = arriving.wait()
    return [Moments(mean[row], logvar[row]) if finite[row] else None for row in range(len(finite))]
