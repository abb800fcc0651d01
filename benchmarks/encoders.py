"""Rows of `benchmarks.precompute` about encoders alone: texts and images a second, beside an eager loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device import DEVICE, free, matrix_rate, peak_memory
from benchmarks.random_bases import materialised, text_encoder
from benchmarks.rows import Row
from eridiff import families
from eridiff.demo.architecture import build_vae, save_random_base
from eridiff.demo.sizes import BaseSize
from eridiff.encoding.batching import Batcher
from eridiff.encoding.compiling import compile_text_encoders, compile_vae
from eridiff.encoding.latents import LatentEncoder
from eridiff.encoding.text import encode_texts
from eridiff.families.base import Moments
from eridiff.families.checkpoints.base import resolve
from eridiff.families.checkpoints.tokenizing import load_tokenizer
from eridiff.families.encoders import TextEncoder
from eridiff.families.float16_vae import shrink
from eridiff.families.relative_bias import lay_out_bias
from eridiff.families.vae_attention import use_products
from eridiff.recipe import Model


@dataclass(frozen=True)
class Settings:
    """How much is encoded.

    Attributes:
        size: widths of the encoders.
        captions: texts.
        images: images that are decoded already.
        files: images in files.
        side_px: their sides.
        text_batch: texts at once.
        image_batch: images at once.
        folder: for tokenizers, and for what the stage makes.
        compile: whether compiled rows are made.
    """

    size: BaseSize
    captions: int
    images: int
    files: int
    side_px: int
    text_batch: int
    image_batch: int
    folder: Path
    compile: bool


def captions(count: int) -> list[str]:
    """Distinct captions of 5 to 100 words."""
    return [f"caption {number}: " + "a lighthouse at dusk, " * (1 + number % 20) for number in range(count)]


def text_rows(settings: Settings) -> Iterator[Row]:
    """Flux's texts: T5-XXL at 512 tokens, and CLIP-L."""
    family = families.get("flux", {})
    encoders = random_text_encoders(settings)
    texts = captions(settings.captions)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        family.encode_prompts(encoders, texts[:1])
    floor_s = counter.get_total_flops() / matrix_rate()

    def eager(batch_size: int) -> Iterator[int]:
        for at in range(0, len(texts), batch_size):
            batch = texts[at : at + batch_size]
            prompts = family.encode_prompts(encoders, batch)
            yield len(prompts.text.cpu()) and len(prompts.pooled.cpu())

    def ours(*, compiled: bool) -> Iterator[int]:
        if compiled:
            compile_text_encoders(encoders)
        made = encode_texts(
            family,
            lambda _dtype: encoders,
            {str(number): text for number, text in enumerate(texts)},
            device=DEVICE,
            dtype=torch.bfloat16,
            batch_size=settings.text_batch,
            fill_batches=compiled,
        )
        yield from map(len, made)

    loops: dict[str, Callable[[], Iterator[int]]] = {
        "eager, one by one": partial(eager, 1),
        "eager, batches": partial(eager, settings.text_batch),
        "eridiff": partial(ours, compiled=False),
    }
    if settings.compile:
        loops["eridiff, compiled"] = partial(ours, compiled=True)
    yield from compared("text of Flux, 512 tokens", loops, floor_s)


def random_text_encoders(settings: Settings) -> tuple[TextEncoder, TextEncoder]:
    """CLIP-L and T5 of the settings' widths, with the tiny base's tokenizers."""
    tiny = settings.folder / "tokenizers"
    save_random_base("flux", tiny)
    base = resolve(Model(family="flux", base=str(tiny)), families.get("flux", {}))
    models = [
        materialised(text_encoder("CLIP-L", tiny / "text_encoder", settings.size)),
        materialised(text_encoder("T5", tiny / "text_encoder_2", settings.size)),
    ]
    clip, t5 = (model.eval().requires_grad_(False) for model in models)
    lay_out_bias(t5)
    return TextEncoder(load_tokenizer(base, "tokenizer"), clip), TextEncoder(
        load_tokenizer(base, "tokenizer_2"), t5
    )


def vae_rows(name: str, settings: Settings) -> Iterator[Row]:
    """Images of one shape, already decoded, through the VAE of the family `name`."""
    family = families.get(name, {})
    weights = random_vae(name, settings.size, torch.float32).state_dict()
    side = settings.side_px
    chance = np.random.default_rng(0)
    images = [chance.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(8)]
    images = [images[number % len(images)] for number in range(settings.images)]
    values = torch.from_numpy(images[0]).permute(2, 0, 1)[None] / 127.5 - 1

    def loaded(dtype: torch.dtype = torch.float32) -> Any:
        vae = random_vae(name, settings.size, dtype)
        vae.load_state_dict(weights)
        return vae

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loaded().encode(values.to(DEVICE))
    floor_s = counter.get_total_flops() / matrix_rate()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = family.encode_images(loaded(), values).mean.cpu()

    def eager() -> Iterator[int]:
        vae = loaded()
        for _ in images:
            with torch.no_grad():
                vae.encode(values.to(DEVICE)).latent_dist.sample().cpu()
            yield 1

    def ours(dtype: torch.dtype, *, compiled: bool) -> Iterator[int]:
        vae = loaded(dtype)
        use_products(vae)
        if dtype == torch.float16:
            shrink(vae.encoder)
        if compiled:
            compile_vae(vae, {(side, side)})
        encoder = LatentEncoder(family, vae, tile_above_px=1536)
        size = settings.image_batch
        batches = [images[at : at + size] for at in range(0, len(images) - len(images) % size, size)]
        for moments in Batcher(size, DEVICE).encode(batches, encoder.start):
            errors.setdefault(name_of(dtype, compiled), apart(moments[0], exact))
            yield len(moments)

    def name_of(dtype: torch.dtype, compiled: bool) -> str:
        return str(dtype).removeprefix("torch.") + (", compiled" if compiled else "")

    errors: dict[str, float] = {}
    loops: dict[str, Callable[[], Iterator[int]]] = {"eager, one by one": eager}
    for compiled in (False, True) if settings.compile else (False,):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            loops[name_of(dtype, compiled)] = partial(ours, dtype, compiled=compiled)
    for row in compared(f"VAE of {name}, {side}² px", loops, floor_s):
        error = errors.get(row["loop"])
        yield row | ({} if error is None else {"error": error})


def random_vae(name: str, size: BaseSize, dtype: torch.dtype) -> Any:
    """The VAE of the family `name` on the device, frozen."""
    with torch.device("meta"):
        vae = build_vae(name, size)
    # Not diffusers' own `to`, which warns of a precision that it would keep.
    return nn.Module.to(materialised(vae), dtype).eval().requires_grad_(False)


def apart(found: Moments | None, exact: Tensor) -> float:
    """Relative difference of means from those of float32 products."""
    assert found is not None
    return round(float((found.mean - exact[0]).norm() / exact.norm()), 6)


def compared(what: str, loops: dict[str, Callable[[], Iterator[int]]], floor_s: float) -> Iterator[Row]:
    """A row a loop: items a second once it runs, its ratio to the first loop, and the share of the floor."""
    reference: float | None = None
    for name, loop in loops.items():
        free()
        try:
            first_s, rate = timed(loop())
        except Exception as failure:  # a loop that fails is a row; the next one is still of interest
            yield {"what": what, "loop": name, "failed": f"{type(failure).__name__}: {failure}"[:300]}
            continue
        reference = reference or rate
        yield {
            "what": what,
            "loop": name,
            "per_s": round(rate, 2),
            "ratio": round(rate / reference, 2),
            "of_floor_percent": round(100 * floor_s * rate, 1),
            "first_s": round(first_s, 1),
            **peak_memory(),
        }


def timed(batches: Iterator[int]) -> tuple[float, float]:
    """Seconds up to the second batch, which compiles and warms up, and items a second from there on.

    A batch is given out when its outputs are on the CPU, so nothing need be waited for here.
    """
    counts, times = [], [time.monotonic()]
    for count in batches:
        counts.append(count)
        times.append(time.monotonic())
    if len(counts) < 3:
        raise ValueError("three batches are the least that can be timed")
    return times[2] - times[0], sum(counts[2:]) / (times[-1] - times[2])
