"""What a LoRA file says about itself: fields that other programs read, and where it comes from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Lora
from eridiff.lora.export import structure_metadata

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily
    from eridiff.recipe import Recipe
    from eridiff.store.snapshots import Sample

_SCHEDULERS = {"constant": "constant", "cosine": "cosine", "linear": "linear"}
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def describe(
    lora: Lora,
    recipe: Recipe,
    family: ModelFamily,
    *,
    file_format: Format,
    step: int,
    made: datetime,
    provenance: Mapping[str, str],
) -> dict[str, str]:
    """The metadata of a LoRA file, without hashes of its tensors.

    Args:
        lora: what is in the file.
        recipe: what made it.
        family: has the names that programs know it by.
        file_format: names of the tensors.
        step: steps trained.
        made: when training got there, with its time zone.
        provenance: digests and versions; keys get `eridiff.` in front.
    """
    return {
        **family.checkpoint.lora.metadata(lora.structure),
        **_kohya(recipe, step),
        **_modelspec(recipe, file_format, made),
        **structure_metadata(lora),
        **{f"eridiff.{key}": value for key, value in provenance.items()},
        "eridiff.format": file_format,
        "eridiff.init": recipe.network.init,
        "eridiff.steps": str(step),
        "eridiff.seed": str(recipe.train.seed),
    }


def describe_data(samples: Sequence[Sample], folders: Sequence[str]) -> dict[str, str]:
    """Fields about the images, as kohya writes them: counts, buckets, and how often each tag occurs.

    Args:
        samples: those trained on.
        folders: name of each dataset, by its index.
    """
    tags: dict[str, Counter[str]] = {name: Counter() for name in folders}
    images: Counter[str] = Counter()
    for sample in samples:
        name = folders[sample.dataset]
        images[name] += 1
        tags[name].update(
            tag.strip() for caption in sample.captions for tag in caption.split(",") if tag.strip()
        )
    sizes = Counter((sample.bucket_width, sample.bucket_height) for sample in samples)
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(sorted(sizes.items()))
    }
    repeats = {folders[sample.dataset]: sample.repeats for sample in samples}
    dirs = {name: {"n_repeats": repeats[name], "img_count": images[name]} for name in images}
    return {
        "ss_num_train_images": str(sum(sample.repeats for sample in samples)),
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_dataset_dirs": json.dumps(dirs, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(
            {name: dict(found) for name, found in tags.items()}, ensure_ascii=False
        ),
    }


def _kohya(recipe: Recipe, step: int) -> dict[str, str]:
    network, train = recipe.network, recipe.train
    arguments = {"conv_dim": network.conv, "conv_alpha": network.conv_alpha or network.conv}
    widening = 2 if network.starts_from_weights else 1
    fields: dict[str, object] = {
        "ss_v2": False,
        "ss_network_dim": widening * network.linear,
        "ss_network_alpha": float(widening * network.linear_alpha),
        "ss_network_args": json.dumps({} if network.conv is None else arguments),
        "ss_output_name": recipe.name,
        "ss_sd_model_name": _base_name(recipe),
        "ss_learning_rate": train.lr,
        "ss_unet_lr": train.lr,
        "ss_optimizer": train.optimizer,
        "ss_lr_scheduler": _SCHEDULERS[train.lr_scheduler],
        "ss_lr_warmup_steps": train.lr_warmup_steps,
        "ss_mixed_precision": _PRECISIONS[train.dtype],
        "ss_seed": train.seed,
        "ss_steps": step,
        "ss_max_train_steps": train.steps,
        "ss_total_batch_size": train.batch_size * train.gradient_accumulation_steps,
        "ss_gradient_accumulation_steps": train.gradient_accumulation_steps,
        "ss_gradient_checkpointing": train.gradient_checkpointing,
        "ss_max_grad_norm": train.max_grad_norm,
        "ss_caption_dropout_rate": train.caption_dropout_rate,
        "ss_cache_latents": True,
        "ss_resolution": f"({recipe.datasets[0].resolution}, {recipe.datasets[0].resolution})",
        "ss_training_comment": "eridiff",
    }
    if train.train_text_encoder:
        fields["ss_text_encoder_lr"] = train.text_encoder_lr or train.lr
    return {key: str(value) for key, value in fields.items()}


def _modelspec(recipe: Recipe, file_format: Format, made: datetime) -> dict[str, str]:
    side = recipe.datasets[0].resolution
    fields = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": recipe.name,
        "modelspec.date": made.isoformat(timespec="seconds"),
        "modelspec.resolution": f"{side}x{side}",
    }
    if recipe.trigger_word:
        fields["modelspec.trigger_phrase"] = recipe.trigger_word
    if file_format == "diffusers":
        fields["modelspec.implementation"] = "diffusers"
    return fields


def _base_name(recipe: Recipe) -> str:
    base = recipe.model.base
    return base.rstrip("/").rpartition("/")[2] if isinstance(base, str) else base.transformer.name


def carried(lora: Lora, family: ModelFamily, file_format: Format) -> dict[str, str]:
    """A read file's metadata for a new file of the same change in other names.

    What speaks of the tensors' bytes is left out. So is diffusers' own description of adapters: it would be
    wrong with another naming.
    """
    stale = (
        "modelspec.hash_sha256",
        "sshs_model_hash",
        "sshs_legacy_hash",
        "lora_adapter_metadata",
        "format",
    )
    kept = {key: value for key, value in lora.metadata.items() if key not in stale}
    named = family.checkpoint.lora.metadata(lora.structure)
    if file_format == "diffusers":
        named["modelspec.implementation"] = "diffusers"
    return {**kept, **named, **structure_metadata(lora), "eridiff.format": file_format}
