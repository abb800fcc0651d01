"""Images a second while sampling, in batches over prompts and seeds and one by one.

`python -m benchmarks.sample` puts denoisers and VAEs of published widths with random weights into diffusers'
own pipelines and makes the same images in three ways: one by one as one would call that pipeline, each
written before the next is begun; as `eridiff evaluate` makes them, in batches and written meanwhile; and so
with compiled blocks. Prompts are random embeddings, since no text encoder takes part.
`--tiny` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch

from benchmarks.cases import CASES, Case
from benchmarks.device import DEVICE, free, peak_memory
from benchmarks.encoders import random_vae
from benchmarks.random_bases import BASES, random_denoiser
from benchmarks.rows import Row, shown
from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.demo.sizes import TINY, BaseSize
from eridiff.evaluation.pictures import Picture, Settings, all_pictures, batches
from eridiff.evaluation.sampling import sample_missing
from eridiff.families.base import ModelFamily, Prompts
from eridiff.families.checkpoints.base import resolve
from eridiff.families.vae_attention import use_products
from eridiff.recipe import Model
from eridiff.training.attention import attention
from eridiff.training.cached import Cached
from eridiff.training.compiling import compile_blocks

COLUMNS = ("recipe", "loop", "images_per_s", "ratio", "first_s", "peak_gb")
GUIDANCE = 4.0


@dataclass(frozen=True)
class RandomPrompts:
    """Stands in for the stored embeddings: a random one for each text, of the case's shape."""

    case: Case

    def prompt(self, caption: str) -> Prompts:
        """Text `[L, D]` and pooled `[P]` bfloat16."""
        chance = torch.Generator().manual_seed(sum(caption.encode()))
        text, pooled = (torch.randn(shape, generator=chance) for shape in (self.case.text, self.case.pooled))
        return Prompts(text.bfloat16(), pooled.bfloat16())


@dataclass(frozen=True)
class Plan:
    """What is sampled: `pictures` in all, in batches of `batch_size`, after one batch that warms up."""

    steps: int
    pictures: int
    batch_size: int
    compile: bool


def main() -> None:
    """Measures the chosen bases, prints rows as they come, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=BASES, action="append", help="all by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--tiny", action="store_true", help="tiny bases and images, on a CPU, too")
    parser.add_argument("--json", action="store_true", help="no table at the end")
    options = parser.parse_args()
    if DEVICE.type != "cuda" and not options.tiny:
        parser.error("this needs a CUDA device; --tiny does not")
    plan = Plan(2 if options.tiny else options.steps, options.pictures, options.batch_size, not options.eager)
    rows = (
        row
        for recipe in options.recipe or BASES
        for row in measured(case_of(recipe, tiny=options.tiny), plan)
    )
    shown(rows, COLUMNS, as_table=not options.json)


def case_of(recipe: str, *, tiny: bool) -> Case:
    """The shapes of a recipe's inputs; where `tiny`, its base is made tiny, too."""
    case = next(case for case in CASES if case.recipe == recipe)
    if not tiny:
        return case
    BASES[recipe] = (BASES[recipe][0], TINY)
    return tiny_case(case)


def tiny_case(case: Case) -> Case:
    """The case at the widths of tiny bases."""
    clips, pooled = TINY.clip_l.width + TINY.clip_g.width, TINY.clip_l.projection + TINY.clip_g.projection
    text, vector = {
        "sdxl": ((77, clips), TINY.clip_g.projection),
        "sd35": ((80, TINY.t5.width), pooled),
        "flux": ((20, TINY.t5.width), TINY.clip_l.width),
    }[BASES[case.recipe][0]]
    return replace(case, text=text, pooled=vector, side_px=64)


def measured(case: Case, plan: Plan) -> Iterator[Row]:
    """A row for each way of sampling; the first is the reference."""
    name, size = BASES[case.recipe]
    family = families.get(name, {})
    reference: float | None = None
    free()
    with tempfile.TemporaryDirectory() as folder, attention("auto"):
        pipeline = random_pipeline(family, case, size, Path(folder))
        # One batch more than is timed: the first compiles and warms up.
        seeds = range(plan.pictures + plan.batch_size)
        pictures = all_pictures(["a lighthouse"], seeds, (0.0,), (), settings_of(case, plan))
        ways = {"one by one": (1, False), "batched": (plan.batch_size, False)}
        ways |= {"batched, compiled": (plan.batch_size, True)} if plan.compile else {}
        for way, (batch_size, compiled) in ways.items():
            if compiled:
                compile_blocks(getattr(pipeline, family.parts.denoiser[0]), family.blocks)
            made = sampled(family, pipeline, case, batches(pictures, batch_size), Path(folder) / way)
            first_s, rate = timed(made, plan.batch_size)
            reference = reference or rate
            yield {
                "recipe": case.recipe,
                "loop": way,
                "images_per_s": round(rate, 3),
                "ratio": round(rate / reference, 2),
                "first_s": round(first_s, 1),
                **peak_memory(),
            }


def sampled(
    family: ModelFamily, pipeline: Any, case: Case, cut: list[tuple[Picture, ...]], folder: Path
) -> Callable[[Callable[[int], None]], None]:
    """What makes the images and reports how many; single ones are written before the next is begun."""
    cached = cast(Cached, RandomPrompts(case))

    def make(report: Callable[[int], None]) -> None:
        together = [cut] if len(cut[0]) > 1 else [[batch] for batch in cut]
        for several in together:
            sample_missing(family, pipeline, cached, several, folder, on_batch=report)

    return make


def timed(make: Callable[[Callable[[int], None]], None], num_before: int) -> tuple[float, float]:
    """Seconds for the first `num_before` images, and images a second for the rest, until all are on disk."""
    started = time.monotonic()
    begun, made = started, 0

    def report(count: int) -> None:
        nonlocal begun, made
        made += count
        if made == num_before:
            begun = time.monotonic()

    make(report)
    return begun - started, (made - num_before) / (time.monotonic() - begun)


def random_pipeline(family: ModelFamily, case: Case, size: BaseSize, folder: Path) -> Any:
    """Diffusers' pipeline with random weights; the tiny base's scheduler is the published one."""
    save_random_base(family.name, folder / "base")
    base = resolve(Model(family=family.name, base=str(folder / "base")), family)

    def denoiser(*_args: object, **_options: object) -> Any:
        return random_denoiser(case.recipe).requires_grad_(False)

    def vae(*_args: object, dtype: torch.dtype, **_options: object) -> Any:
        made = random_vae(family.name, size, dtype)
        use_products(made)
        return made

    with patch.object(type(family), "load_denoiser", denoiser), patch.object(type(family), "load_vae", vae):
        return family.load_pipeline(base, device=DEVICE, dtype=torch.bfloat16)


def settings_of(case: Case, plan: Plan) -> Settings:
    """What all images share."""
    return Settings(
        base="random",
        base_name="random",
        text_space="random",
        family=BASES[case.recipe][0],
        options={},
        negative="blurry",
        width_px=case.side_px,
        height_px=case.side_px,
        steps=plan.steps,
        guidance=GUIDANCE,
        dtype="bf16",
    )


if __name__ == "__main__":
    main()
