"""A training put together: the denoiser with its LoRA on the device, the cached tensors, the files."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from eridiff import __version__
from eridiff import recipe as recipes
from eridiff.devices import DTYPES
from eridiff.encoding.spaces import base_of, family_of
from eridiff.errors import DataError
from eridiff.families import live as live_text
from eridiff.families.frozen.keep import Keep
from eridiff.families.live import LiveText
from eridiff.locks import held
from eridiff.lora.encoders import NO_ENCODERS, Encoders
from eridiff.lora.export import resolve_format
from eridiff.lora.forward import compute_in_input_precision
from eridiff.lora.inject import Injected, inject, lora_state
from eridiff.lora.metadata import describe, describe_data
from eridiff.lora.verify import publish, rehearse
from eridiff.store.files import write_atomic, write_json
from eridiff.training.batches import Batches, Draws
from eridiff.training.cached import open_cached
from eridiff.training.distributed import Processes
from eridiff.training.inputs import Inputs
from eridiff.training.loop import Job
from eridiff.training.offload import offload_blocks
from eridiff.training.order import Order
from eridiff.training.proof import prove
from eridiff.training.shard import keep_share
from eridiff.training.trainer import check_optimizer

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


@dataclass(frozen=True)
class Session:
    """A job, and how its LoRA becomes a file."""

    inputs: Inputs
    job: Job
    injected: Injected

    def export(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Writes the LoRA file of a step; that of the last step is the run's own.

        Raises:
            ModelError: a weight does not fit the file's type, or a program would load something else.
            StoreError: the disk is full.
        """
        recipe, family, run = self.inputs.recipe, self.job.family, self.job.run
        weights = {name: value.detach().cpu() for name, value in weights.items()}  # where files are read
        lora = self.injected.lora(weights)
        file_format = resolve_format(recipe.network.format, family)
        named = describe(
            lora,
            recipe,
            family,
            file_format=file_format,
            step=step,
            made=datetime.now(UTC),
            provenance=self.inputs.provenance,
        )
        last = step == recipe.train.steps
        folders = [str(dataset.folder_path.name) for dataset in recipe.datasets]
        publish(
            run.lora_file(None if last else step),
            lora,
            self.job.denoiser,
            family,
            file_format=file_format,
            dtype=DTYPES[recipe.save.dtype],
            metadata={**named, **describe_data(self.inputs.samples, folders)},
            encoders=self.job.encoders,
            prove=partial(
                prove, job=self.job, injected=self.injected, weights=weights, file_format=file_format
            )
            if last
            else None,
        )


def open_session(inputs: Inputs, processes: Processes) -> Session:
    """Loads the denoiser, puts the LoRA into it, and opens the cached tensors; all processes must call it.

    Raises:
        DataError: there is no sample to train on.
        StoreError: latents or embeddings are missing.
        ModelError: the base lacks the denoiser or a text encoder that is trained, or is of another family.
        RecipeError: the LoRA's targets match no layers, or the optimizer cannot be built.
    """
    recipe = inputs.recipe
    if not inputs.samples:
        raise DataError(
            "There is no image to train on.",
            fix="add images, or lower ingest.holdout; then run `eridiff run`",
        )
    text = inputs.text.store() if inputs.cached_encoders else None
    cached = open_cached(inputs.latents.store(), text, inputs.samples)
    family, train, device = family_of(recipe), recipe.train, processes.device
    check_optimizer(train, device)
    live = _load_encoders(inputs, device) if inputs.encoders else None
    encoders = live.models if live else NO_ENCODERS
    denoiser, injected = _load_denoiser(inputs, processes, encoders)
    file_format = resolve_format(recipe.network.format, family)
    rehearse(injected, denoiser, family, file_format=file_format, encoders=encoders)
    for encoder in encoders.values():
        compute_in_input_precision(encoder)
    draws = Draws(train.seed, train.caption_dropout_rate, train.caption_dropout_pooled)
    job = Job(
        run=inputs.run,
        family=family,
        denoiser=denoiser,
        parameters=lora_state(denoiser, encoders),
        batches=Batches(family, cached, inputs.samples, draws, live),
        order=Order(inputs.samples, train.batch_size, train.seed),
        train=train,
        save=recipe.save,
        logging=recipe.logging,
        config=recipe.model_dump(mode="json"),
        live=live,
        start=injected.start,
    )
    return Session(inputs, job, injected)


def _load_denoiser(inputs: Inputs, processes: Processes, encoders: Encoders) -> tuple[nn.Module, Injected]:
    """The denoiser with its LoRA, and its blocks where the recipe says."""
    recipe, family = inputs.recipe, family_of(inputs.recipe)
    train, device, blocks = recipe.train, processes.device, family.checkpoint.blocks
    sharded = train.shard_base and processes.local_size > 1

    def loaded() -> tuple[nn.Module, Injected]:
        keep = Keep(recipe.model.quantize, 1.0 if sharded else train.offload)
        denoiser = family.load_denoiser(base_of(recipe), device=device, dtype=DTYPES[train.dtype], keep=keep)
        injected = inject(denoiser, recipe.network, family, seed=train.seed, encoders=encoders)
        # Both lie beside the weights, which may stay away.
        for factor in (*lora_state(denoiser).values(), *injected.start.values()):
            factor.data = factor.data.to(device)
        return denoiser, injected

    if not sharded:
        if train.shard_base:
            logger.info("One process on this machine: its device holds the base whole.")
        denoiser, injected = loaded()
        offload_blocks(denoiser, blocks, train.offload, device)
        return denoiser, injected
    # One after the other: until a process has kept its part, system memory holds the whole base.
    with held(inputs.run.folder / "loading.lock", "its turn to load the base"):
        denoiser, injected = loaded()
        share = keep_share(denoiser, blocks, processes)
    share.open(processes)
    return denoiser, injected


def _load_encoders(inputs: Inputs, device: torch.device) -> LiveText:
    """The text encoders that are trained, in the precision of the embeddings that they stand for."""
    recipe = inputs.recipe
    dtype = DTYPES[recipe.precompute.text_dtype]
    return live_text.load(family_of(recipe), base_of(recipe), device=device, dtype=dtype)


def write_facts(inputs: Inputs, device: torch.device) -> None:
    """Keeps the resolved recipe, and what it runs with, beside the run."""
    write_atomic(inputs.run.recipe, recipes.dump(inputs.recipe).encode())
    write_json(inputs.run.environment, {**environment(device), "provenance": inputs.provenance})


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device."""
    found: dict[str, Any] = {"eridiff": __version__, **{name: metadata.version(name) for name in _PACKAGES}}
    found |= {"python": platform.python_version(), "platform": platform.platform(), "device": str(device)}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found
