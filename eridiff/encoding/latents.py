"""Images to posterior moments: batches of one shape through the VAE, tiled where they are large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eridiff.encoding.batching import Batcher
from eridiff.encoding.pixels import read_pixels
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

    def encode(self, pixels: Sequence[np.ndarray]) -> list[Moments | None]:
        """Moments of images of one shape, each `[C, h, w]` float32 on the CPU; `None` where not finite.

        What is not finite in the VAE's own precision is encoded again in float32.

        Args:
            pixels: each `[3, H, W]` float32 in [-1, 1].
        """
        batch = torch.from_numpy(np.stack(pixels))
        tiled = max(batch.shape[-2:]) > self.tile_above_px
        if tiled:
            self.vae.enable_tiling()
        try:
            rows = self._rows(batch)
            bad = [number for number, row in enumerate(rows) if row is None]
            if bad and self.vae.dtype != torch.float32:
                for number, row in zip(bad, self._rows_in_float32(batch[bad]), strict=True):
                    rows[number] = row
        finally:
            if tiled:
                self.vae.disable_tiling()
        return rows

    def _rows(self, batch: Tensor) -> list[Moments | None]:
        moments = self.family.encode_images(self.vae, batch.to(self.vae.device))
        mean, logvar = moments.mean.cpu(), moments.logvar.cpu()
        return [
            Moments(mean[row], logvar[row]) if _finite(mean[row]) and _finite(logvar[row]) else None
            for row in range(len(batch))
        ]

    def _rows_in_float32(self, batch: Tensor) -> list[Moments | None]:
        dtype = self.vae.dtype
        self.vae.float()
        try:
            return self._rows(batch)
        finally:
            self.vae.to(dtype)


def encode_latents(
    encoder: LatentEncoder, images: AnyPath, jobs: Sequence[LatentJob], *, batch_size: int
) -> Iterator[Mapping[str, Item | str]]:
    """Latents of jobs, batch after batch: for each key the item, or the reason why there is none.

    Args:
        encoder: the VAE.
        images: the folder of image shards.
        jobs: with equal shapes beside each other.
        batch_size: images of one shape at once.

    Raises:
        StoreError: an image shard is missing or damaged.
        ModelError: not even one image fits into the device's memory.
    """
    batcher = Batcher(batch_size)
    with closing(read_pixels(images, jobs, ahead=2 * batch_size)) as decoded:
        for batch in _batches(jobs, batch_size):
            found = dict(zip(batch, islice(decoded, len(batch)), strict=True))
            usable = {job: pixels for job, pixels in found.items() if not isinstance(pixels, UnusableImage)}
            outcomes: dict[str, Item | str] = {
                job.key: pixels.reason for job, pixels in found.items() if isinstance(pixels, UnusableImage)
            }
            for job, moments in zip(usable, batcher.encode([*usable.values()], encoder.encode), strict=True):
                outcomes[job.key] = NOT_FINITE if moments is None else _item(job.key, moments)
            yield outcomes


def _batches(jobs: Sequence[LatentJob], batch_size: int) -> Iterator[list[LatentJob]]:
    """Jobs of one shape, at most `batch_size` of them; no job is left out."""
    for _, group in groupby(jobs, key=lambda job: (job.sample.bucket_height, job.sample.bucket_width)):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _item(key: str, moments: Moments) -> Item:
    return Item(key, {"mean": to_stored(moments.mean), "logvar": to_stored(moments.logvar)})


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
