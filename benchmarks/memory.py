"""Peak memory and milliseconds of a training step under each profile, within the memory of such a card.

`python -m benchmarks.memory --all` builds each denoiser at its published widths with random weights, kept as
the profile says, in a process of its own whose allocator may take no more than the card has (less what CUDA
itself takes), and trains a LoRA of rank 16 at 1024² px, batch 1. Beside the peak stands what `eridiff plan`
predicts. Needs a CUDA device with more memory than the profile's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.cases import SINGLES, Case, random_batch
from benchmarks.device import DEVICE, free, synchronize
from benchmarks.random_bases import BASES, NETWORK, adapt, kept_denoiser
from benchmarks.rows import Row, shown
from eridiff import families
from eridiff.demo.architecture import build_denoiser_on_meta
from eridiff.errors import ModelError
from eridiff.families.activations import Workload
from eridiff.families.base import ModelFamily
from eridiff.families.frozen.keep import Keep, Quantization
from eridiff.families.profiles import PROFILES, ProfileName
from eridiff.recipe import Dataset, Model, Recipe, Train
from eridiff.training.attention import attention
from eridiff.training.batches import StepBatches
from eridiff.training.distributed import Processes
from eridiff.training.footprint import CONTEXT_BYTES, footprint
from eridiff.training.offload import offload_blocks
from eridiff.training.trainer import Trainer

FIRST_STEPS = 4
"""Steps before the clock starts: in the first, blocks that stay away are not foreseen yet; a compiled one
compiles in the first, and records in the third."""
COLUMNS = (
    "recipe",
    "profile",
    "quantize",
    "offload",
    "checkpointing",
    "cap_gb",
    "peak_gb",
    "predicted_gb",
    "host_gb",
    "ms",
)


@dataclass(frozen=True)
class Trial:
    """One row.

    Attributes:
        recipe: a key of `random_bases.BASES`.
        train: how it is trained.
        quantize: in what the base is kept.
        cap_gb: what the allocator may take; everything, if none.
    """

    recipe: str
    train: Train
    quantize: Quantization
    cap_gb: float | None

    @property
    def keep(self) -> Keep:
        """How the base lies in memory."""
        return Keep(self.quantize, self.train.offload)


def main() -> None:
    """Measures the chosen recipes and profiles; prints rows as they come, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every recipe under every profile")
    parser.add_argument("--recipe", choices=BASES, action="append")
    parser.add_argument("--profile", choices=PROFILES, action="append")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp8"], help="instead of the profile's")
    parser.add_argument("--offload", type=float, help="instead of the profile's")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="no table at the end")
    parser.add_argument("--here", action="store_true", help="in this process: for one row")
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        parser.error("this needs a CUDA device")
    pairs = list(product(BASES if options.all else options.recipe or (), options.profile or PROFILES))
    if options.here:
        for recipe, profile in pairs:
            print(json.dumps(row(recipe, profile, options)), flush=True)
        return
    found = (in_own_process(recipe, profile, options) for recipe, profile in pairs)
    shown(found, COLUMNS, as_table=not options.json)


def in_own_process(recipe: str, profile: ProfileName, options: argparse.Namespace) -> Row:
    """A row from a process that has nothing else in memory; one that ends badly gives a row, too."""
    command = [sys.executable, "-m", "benchmarks.memory", "--here", "--recipe", recipe, "--profile", profile]
    command += ["--steps", str(options.steps)] + (["--compile"] if options.compile else [])
    command += ["--quantize", options.quantize] if options.quantize else []
    command += ["--offload", str(options.offload)] if options.offload is not None else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        return {"recipe": recipe, "profile": profile, "failed": f"exit code {done.returncode}"}
    return json.loads(found[-1])


def row(recipe: str, profile: ProfileName, options: argparse.Namespace) -> Row:
    """What a recipe takes under a profile."""
    trial = trial_of(recipe, profile, options)
    told = {
        "recipe": recipe,
        "profile": profile,
        "quantize": trial.quantize,
        "offload": trial.train.offload,
        "checkpointing": str(trial.train.gradient_checkpointing),
        "cap_gb": trial.cap_gb,
    }
    try:
        return told | measured(trial, options.steps)
    except (ModelError, torch.OutOfMemoryError) as error:  # a profile that does not fit is a result
        return told | {"failed": str(error)[:400]}


def trial_of(recipe: str, profile: ProfileName, options: argparse.Namespace) -> Trial:
    """The profile's settings with those of the command line over them."""
    chosen = families.profile(BASES[recipe][0], family_options(recipe), profile)
    train = Train.model_validate({**chosen["train"], "steps": 10_000, "compile": options.compile})
    if options.offload is not None:
        train = train.model_copy(update={"offload": options.offload})
    memory = int(profile.removesuffix("gb")) * 2**30
    quantize = options.quantize or chosen["model"]["quantize"]
    return Trial(recipe, train, quantize, round((memory - CONTEXT_BYTES) / 1e9, 2))


def family_options(recipe: str) -> dict[str, str]:
    """The options by which a family knows its variant."""
    name, _, variant = recipe.partition("-")
    return {"variant": variant} if name == "sd35" else {}


def measured(trial: Trial, steps: int) -> Row:
    """Peaks of device and process memory, and median milliseconds of a step.

    Raises:
        ModelError: it does not fit.
    """
    if trial.cap_gb is not None:
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction(min(trial.cap_gb * 1e9 / total, 1.0))
    free()
    case = SINGLES[trial.recipe]
    family = families.get(BASES[trial.recipe][0], family_options(trial.recipe))
    denoiser = kept_denoiser(trial.recipe, trial.keep)
    parameters = adapt(trial.recipe, denoiser)
    offload_blocks(denoiser, family.checkpoint.blocks, trial.keep.offload, DEVICE)
    trainer = Trainer(family, denoiser, parameters, trial.train, Processes(rank=0, size=1, device=DEVICE))
    waiting = random_batch(case, family).each(torch.Tensor.cpu)
    waiting = waiting.pinned() if DEVICE.type == "cuda" else waiting
    work = StepBatches(step=0, epoch=0, num_samples=1, batches=(waiting,))
    times = []
    with attention(trial.train.attention):
        for _ in range(FIRST_STEPS + steps):
            started = time.monotonic()
            trainer.advance(work, stop=False)
            synchronize()
            times.append(1000 * (time.monotonic() - started))
    return {
        "ms": round(statistics.median(times[FIRST_STEPS:]), 1),
        "peak_gb": gigabytes(torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0),
        "reserved_gb": gigabytes(torch.cuda.max_memory_reserved() if DEVICE.type == "cuda" else 0),
        "predicted_gb": gigabytes(predicted(trial, case, family)),
        "host_gb": gigabytes(peak_host_bytes()),
    }


def predicted(trial: Trial, case: Case, family: ModelFamily) -> int:
    """What `eridiff plan` predicts."""
    name, size = BASES[trial.recipe]
    shapes = {
        key: tuple(weight.shape) for key, weight in build_denoiser_on_meta(name, size).named_parameters()
    }
    recipe = Recipe(
        name="memory",
        model=Model(family=name, base="random", quantize=trial.quantize),
        datasets=(Dataset(folder_path=Path("none"), resolution=case.side_px),),
        network=NETWORK,
        train=trial.train,
    )
    cells = case.side_px // family.latent.stride
    checkpointed = trial.train.gradient_checkpointing is True
    return footprint(recipe, family, shapes, Workload(1, cells, cells), checkpointed=checkpointed).total


def peak_host_bytes() -> int:
    """The process's largest resident memory, libraries and CUDA's own included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def gigabytes(count: float) -> float:
    """Bytes in units of 10⁹."""
    return round(count / 1e9, 2)


if __name__ == "__main__":
    main()
