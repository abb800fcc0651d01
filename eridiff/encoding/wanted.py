"""What a recipe wants encoded, by key, and how the work is shared. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from eridiff.encoding.live import cached_encoders
from eridiff.errors import RecipeError
from eridiff.images.captions import TRIGGER
from eridiff.recipe import Recipe
from eridiff.store.files import digest_bytes
from eridiff.store.snapshots import Sample, Snapshot, text_key

EMPTY_PROMPT = ""
"""What a dropped caption is, and an absent negative prompt."""

Part = tuple[int, int]
"""`(i, n)`: the i-th of n shares of the work, from 1 to n."""


@dataclass(frozen=True)
class LatentJob:
    """One latent to make: a sample's crop, as it is or mirrored."""

    sample: Sample
    mirrored: bool

    @property
    def key(self) -> str:
        """Its key in the store."""
        return self.sample.latent_key(self.mirrored)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image that is encoded, in pixels."""
        return self.sample.bucket_height, self.sample.bucket_width


def wanted_latents(snapshot: Snapshot) -> dict[str, LatentJob]:
    """A job for each distinct latent of a snapshot, in the order in which they are best made.

    Equal shapes lie together, so that batches can be made of them, and in each the order of the shards.
    """
    jobs = [
        LatentJob(sample, mirrored)
        for sample in snapshot.samples
        for mirrored in ((False, True) if sample.flip else (False,))
    ]
    return {job.key: job for job in sorted(jobs, key=_latent_order)}


def wanted_captions(recipe: Recipe, snapshot: Snapshot | None) -> dict[str, str]:
    """Each distinct text to embed, by key: the captions and what `prompts_of` the recipe gives.

    Args:
        recipe: its sample prompts are wanted.
        snapshot: its captions are wanted; none before images were ingested. Where all text encoders are
            trained, only those of the hold-out are: for the base's loss.
    """
    samples = () if snapshot is None else snapshot.samples if cached_encoders(recipe) else snapshot.holdout
    captions = {caption for sample in samples for caption in sample.captions}
    captions |= prompts_of(recipe)
    by_key = {text_key(caption): caption for caption in captions}
    return {key: by_key[key] for key in sorted(by_key)}


def prompts_of(recipe: Recipe) -> set[str]:
    """Texts needed whatever the images: the empty prompt, the sample prompts, the negative prompt."""
    return {EMPTY_PROMPT, negative_prompt(recipe), *sample_prompts(recipe)}


def sample_prompts(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's sample prompts with the trigger word in its place."""
    return tuple(_with_trigger(recipe, prompt) for prompt in recipe.sample.prompts)


def negative_prompt(recipe: Recipe) -> str:
    """The recipe's negative prompt; empty for none."""
    return _with_trigger(recipe, recipe.sample.neg)


def of_part(keys: Iterable[str], part: Part) -> list[str]:
    """The keys of one share of the work: the same ones in every process, however much is done already.

    Raises:
        ValueError: there is no such part.
    """
    index, count = part
    if not 1 <= index <= count:
        raise ValueError(f"part {index} of {count}")
    return [key for key in keys if int(digest_bytes(key.encode())[:12], 16) % count == index - 1]


def usable_samples(
    samples: Iterable[Sample], bad_latents: Mapping[str, str], bad_captions: Mapping[str, str]
) -> tuple[Sample, ...]:
    """Samples without what is quarantined: captions that cannot be embedded, images that cannot be encoded.

    Args:
        samples: of a snapshot.
        bad_latents: `quarantined()` of the latents' store.
        bad_captions: `quarantined()` of the text's store.
    """
    usable = []
    for sample in samples:
        captions = tuple(caption for caption in sample.captions if text_key(caption) not in bad_captions)
        if captions and not any(key in bad_latents for key in sample.latent_keys()):
            usable.append(replace(sample, captions=captions))
    return tuple(usable)


def _latent_order(job: LatentJob) -> tuple[int, int, str, str, bool]:
    return *job.size, job.sample.shard, job.sample.latent_key(False), job.mirrored


def _with_trigger(recipe: Recipe, prompt: str) -> str:
    if TRIGGER not in prompt:
        return prompt
    if not recipe.trigger_word:
        raise RecipeError(
            f"A prompt says {TRIGGER}, but the recipe has no trigger word.",
            where="sample",
            found=prompt,
            fix="set trigger_word, or take it out of the prompt",
        )
    return prompt.replace(TRIGGER, recipe.trigger_word)
