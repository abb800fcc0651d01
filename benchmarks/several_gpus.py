"""A training step on the GPUs of one machine, with the base on each, spread over them, or in system memory.

`torchrun --nproc-per-node 2 -m benchmarks.several_gpus --recipe flux-dev` trains a LoRA of rank 16 at 1024²
px on one sample a GPU, at published widths with random weights, beside the same step on one GPU alone.
`gradient_error` is the relative difference of a gradient from the whole base's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Literal, get_args

from torch import Tensor

from benchmarks.cases import SINGLES, random_batch
from benchmarks.device import DEVICE, free, peak_memory, synchronize
from benchmarks.random_bases import BASES, adapt, kept_denoiser
from benchmarks.rows import Row, shown
from eridiff import families
from eridiff.families.frozen.keep import Keep
from eridiff.recipe import Train
from eridiff.training.attention import attention
from eridiff.training.batches import StepBatches
from eridiff.training.distributed import Processes, processes
from eridiff.training.offload import offload_blocks
from eridiff.training.shard import keep_share
from eridiff.training.trainer import Trainer

FIRST_STEPS = 4
Base = Literal["whole", "sharded", "offloaded"]
COLUMNS = ("recipe", "base", "compiled", "gpus", "ms", "images_per_s", "ratio", "peak_gb", "gradient_error")


def main() -> None:
    """Measures a recipe in each way; the first process prints rows as they come, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=BASES, default="flux-dev")
    parser.add_argument("--base", choices=get_args(Base), action="append", help="all three by default")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="no table at the end")
    options = parser.parse_args()
    with processes(DEVICE) as us:
        found = rows(options, us)
        if us.leads:
            shown(found, COLUMNS, as_table=not options.json)
        else:
            list(found)


def rows(options: argparse.Namespace, us: Processes) -> Iterator[Row]:
    """A row for one GPU alone, and one for each way to keep the base on all."""
    told = {"recipe": options.recipe, "compiled": options.compile}
    alone: Row = {}
    wanted: Tensor | None = None
    if us.leads:
        alone, wanted = measured(options, "whole", Processes(0, 1, us.device))
        yield told | {"base": "whole", "gpus": 1, **alone}
    us.wait()
    for base in options.base or get_args(Base):
        found, gradient = measured(options, base, us)
        free()  # no process may end while another holds memory of its
        us.wait()
        if wanted is not None:
            ratio = found["images_per_s"] / alone["images_per_s"]
            error = float((gradient - wanted).norm() / wanted.norm())
            found |= {"ratio": round(ratio, 2), "gradient_error": round(error, 5)}
        yield told | {"base": base, "gpus": us.size, **found}


def measured(options: argparse.Namespace, base: Base, us: Processes) -> tuple[Row, Tensor]:
    """Milliseconds of a step of one sample a GPU, this GPU's peak, and the gradient of the first sample."""
    free()
    case = SINGLES[options.recipe]
    name, _ = BASES[options.recipe]
    family = families.get(name, {})
    away = 0.0 if base == "whole" else 1.0
    denoiser = kept_denoiser(options.recipe, Keep("none", away))
    parameters = adapt(options.recipe, denoiser)
    if base == "sharded":
        keep_share(denoiser, family.checkpoint.blocks, us).open(us)
    else:
        offload_blocks(denoiser, family.checkpoint.blocks, away, us.device)
    settings = Train(steps=10_000, compile=options.compile, batch_size=us.size)
    trainer = Trainer(family, denoiser, parameters, settings, us)
    batch = random_batch(case, family).each(Tensor.cpu)
    batch = batch.pinned() if DEVICE.type == "cuda" else batch
    work = StepBatches(step=0, epoch=0, num_samples=us.size, batches=(batch,))
    times = []
    with attention(settings.attention):
        gradient = trainer.gradient(batch.to(us.device)).cpu()
        for _ in range(FIRST_STEPS + options.steps):
            us.wait()
            synchronize()
            started = time.monotonic()
            trainer.advance(work, stop=False)
            synchronize()
            times.append(1000 * (time.monotonic() - started))
    ms = statistics.median(times[FIRST_STEPS:])
    return {"ms": round(ms, 1), "images_per_s": round(1000 * us.size / ms, 2), **peak_memory()}, gradient


if __name__ == "__main__":
    main()
