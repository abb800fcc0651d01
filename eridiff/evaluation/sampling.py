"""Images through diffusers' own pipelines, from stored embeddings and the LoRA file that a user loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from eridiff.encoding.wanted import EMPTY_PROMPT
from eridiff.errors import ModelError
from eridiff.evaluation.pictures import Picture, Settings
from eridiff.evaluation.spoken import beside
from eridiff.families.base import ModelFamily, Prompts, SampleRequest
from eridiff.lora.encoders import NO_ENCODERS, Encoders
from eridiff.quiet import unsaid, without_loading_bar
from eridiff.store.files import atomic_path
from eridiff.training.cached import Encoded

_ADAPTER = "lora"
_WRITING_THREADS = 4


class AttachedLora:
    """A LoRA inside a pipeline and text encoders, at strength 1 until told otherwise."""

    def __init__(self, pipeline: Any, encoders: Encoders) -> None:
        self._pipeline, self._encoders = pipeline, encoders

    def set_strength(self, strength: float) -> None:
        """Multiplies the LoRA's change by `strength`."""
        with beside(self._pipeline, self._encoders):
            self._pipeline.set_adapters([_ADAPTER], [strength])


@contextmanager
def attached(
    pipeline: Any, tensors: Mapping[str, Tensor], encoders: Encoders = NO_ENCODERS
) -> Iterator[AttachedLora]:
    """The pipeline with a LoRA; after the block it is the base again, layer for layer.

    Args:
        pipeline: a pipeline of diffusers, without text encoders.
        tensors: two factors a layer, as `load_lora_weights` takes them.
        encoders: text encoders that the LoRA changes, too.

    Raises:
        ModelError: they do not take all of them.
    """
    try:
        # It says of each text encoder that is not there that it gets no LoRA: as it should be.
        with (
            beside(pipeline, encoders),
            without_loading_bar(),
            unsaid("diffusers.loaders.lora_base", "associated to NoneType"),
        ):
            pipeline.load_lora_weights(dict(tensors), adapter_name=_ADAPTER)
            _refuse_partly_loaded(pipeline, tensors)
            _lay_on(pipeline)
        lora = AttachedLora(pipeline, encoders)
        lora.set_strength(1.0)
        yield lora
    finally:
        with beside(pipeline, encoders):
            pipeline.unload_lora_weights()


def _lay_on(pipeline: Any) -> None:
    """Moves LoRA factors to the pipeline's device: peft puts them beside weights that may stay away."""
    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    device = pipeline.device  # once: diffusers looks for it in every module
    for module in (module for model in models for module in model.modules()):
        if _ADAPTER in getattr(module, "lora_A", {}):
            for factors in (module.lora_A, module.lora_B):
                factors.to(device)


def _refuse_partly_loaded(pipeline: Any, tensors: Mapping[str, Tensor]) -> None:
    """Diffusers only warns of layers that it does not know."""
    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    found = sum(_ADAPTER in getattr(module, "lora_A", {}) for model in models for module in model.modules())
    if 2 * found != len(tensors):
        raise ModelError(
            "The pipeline does not take every layer of the LoRA.",
            found=f"{found} layers",
            wanted=f"{len(tensors) // 2} layers",
            fix="is it a LoRA of this base?",
        )


def sample(
    family: ModelFamily, pipeline: Any, cached: Encoded, pictures: Sequence[Picture]
) -> list[Image.Image]:
    """The images of one batch, all with the LoRA and strength that the pipeline carries now.

    Args:
        family: whose pipeline it is.
        pipeline: from `family.load_pipeline`.
        cached: holds the embedding of every prompt.
        pictures: of one evaluation; not empty.
    """
    shared = pictures[0].settings
    request = SampleRequest(
        seeds=tuple(picture.seed for picture in pictures),
        width_px=shared.width_px,
        height_px=shared.height_px,
        steps=shared.steps,
        guidance=shared.guidance,
    )
    prompts = _stacked([cached.prompt(picture.prompt) for picture in pictures])
    negatives = _stacked([_negative(family, cached, shared)] * len(pictures))
    with torch.no_grad():
        return family.sample(pipeline, prompts, negatives, request)


def sample_missing(
    family: ModelFamily,
    pipeline: Any,
    cached: Encoded,
    batches: Sequence[Sequence[Picture]],
    folder: Path,
    *,
    on_batch: Callable[[int], None],
) -> int:
    """Makes the images that `folder` lacks and returns the bytes written.

    A batch that lacks one is sampled whole, since what shares a batch can change an image in its last bit.
    Files are written while the next batch is sampled, at most one batch behind.

    Args:
        family: whose pipeline it is.
        pipeline: carries the LoRA and strength of all `batches`.
        cached: holds the embedding of every prompt.
        batches: see `pictures.batches`.
        folder: where the images lie, each under its key.
        on_batch: called with the number of images made; may raise to stop.
    """
    written, writing = 0, []
    with ThreadPoolExecutor(_WRITING_THREADS, "png") as threads:
        for batch in batches:
            missing = [picture for picture in batch if not picture.path(folder).exists()]
            if not missing:
                continue
            sampled = sample(family, pipeline, cached, batch)
            images = dict(zip([picture.key for picture in batch], sampled, strict=True))
            written += sum(file.result() for file in writing)
            writing = [
                threads.submit(write_png, images[picture.key], picture.path(folder), picture.metadata())
                for picture in missing
            ]
            on_batch(len(missing))
        return written + sum(file.result() for file in writing)


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, str]) -> int:
    """Writes an image with words inside, whole or not at all; returns its bytes on disk."""
    words = PngImagePlugin.PngInfo()
    for name, value in metadata.items():
        words.add_text(name, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=words)
    return path.stat().st_size


def _negative(family: ModelFamily, cached: Encoded, settings: Settings) -> Prompts:
    if settings.negative:
        return cached.prompt(settings.negative)
    return family.unconditional(cached.prompt(EMPTY_PROMPT))


def _stacked(prompts: Sequence[Prompts]) -> Prompts:
    text = torch.stack([prompt.text for prompt in prompts])
    return Prompts(text, torch.stack([prompt.pooled for prompt in prompts]))
