"""Pixels of samples from their shards, decoded ahead of the encoder in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from eridiff.encoding.wanted import LatentJob
from eridiff.images.decode import decode_rgb, resize_and_crop
from eridiff.images.formats import UnusableImage
from eridiff.images.shards import read_images
from eridiff.store.paths import AnyPath, opened_here

_MOST_THREADS = 16


def read_pixels(
    images: AnyPath, jobs: Sequence[LatentJob], *, ahead: int
) -> Generator[np.ndarray | UnusableImage, None, None]:
    """For each job, in order, its crop `[H, W, 3]` uint8, or why there is none.

    Args:
        images: the folder of image shards.
        jobs: what to read.
        ahead: images to decode before they are asked for, besides those that the threads are at.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    sources = read_images(images, [job.sample for job in jobs], opened=opened_here)
    num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads, "decode") as threads:
        waiting: deque[Future[np.ndarray | UnusableImage]] = deque()
        for job, (_, data) in zip(jobs, sources, strict=True):
            waiting.append(threads.submit(_decode, job, data))
            if len(waiting) > ahead + num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def to_values(pixels: Tensor) -> Tensor:
    """Pixels `[B, H, W, 3]` uint8 as the VAE takes them: `[B, 3, H, W]` float32 in [-1, 1], on their device.

    Equal to the bit on every device: torch divides by a tensor, but multiplies by the inverse of a number.
    """
    values = pixels.movedim(-1, 1).contiguous().float()
    return values.div_(values.new_full((), 255)).sub_(0.5).div_(0.5)


def _decode(job: LatentJob, data: bytes) -> np.ndarray | UnusableImage:
    try:
        pixels = np.asarray(resize_and_crop(decode_rgb(data), job.sample))
    except UnusableImage as error:
        return error
    return pixels[:, ::-1] if job.mirrored else pixels
