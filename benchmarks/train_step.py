"""Milliseconds of a training step at real size, beside the eager loop of diffusers' LoRA scripts.

`python -m benchmarks.train_step --all` builds each denoiser at its published widths with random weights and
times three loops over the same batch, in one process for each case: the scripts' (autocast, peft's own
layers, fused AdamW) with gradient checkpointing, as they default, and without, and eridiff's own step. The
floor is twice the forward pass's floating-point operations (forward, and gradient of activations: the base
is frozen) at the rate that an 8192 x 8192 x 8192 bfloat16 product reaches on the card just then.
`gradient_error` is how far the gradient of our step is from that of the same step run eagerly with plain
attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import CASES, Case, random_batch
from benchmarks.device import DEVICE, free, matrix_rate, peak_memory, synchronize
from benchmarks.random_bases import BASES, adapt, kept_denoiser, random_denoiser
from benchmarks.rows import Row, shown
from eridiff import families
from eridiff.errors import ModelError
from eridiff.families.base import ModelFamily
from eridiff.families.frozen.keep import Keep
from eridiff.recipe import Train
from eridiff.training.attention import attention, check_gradients
from eridiff.training.batches import StepBatches
from eridiff.training.distributed import Processes
from eridiff.training.step import Batch, losses
from eridiff.training.trainer import Trainer

FIRST_STEPS = 4
"""Steps before the clock starts: ours compiles in the first and records in the third."""
LOOPS = ("eager, checkpointed", "eager", "eridiff")
PEER_ATTENTION = "flash"
"""What diffusers' loop runs on: left to choose, torch takes cuDNN, whose gradients are wrong there."""
COLUMNS = (
    "case",
    "loop",
    "ms",
    "images_per_s",
    "ratio",
    "of_floor_percent",
    "peak_gb",
    "first_steps_s",
    "gradient_error",
)


@dataclass(frozen=True)
class Settings:
    """How a case is measured."""

    steps: int
    attention: str
    compile: bool
    profiles: Path | None
    loops: tuple[str, ...] = LOOPS
    seconds: float = float("inf")
    """No loop is begun after that many."""


def main() -> None:
    """Times the chosen cases; prints rows as they come, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--case", choices=names, action="append", help="recipe:batch size[:quantised]")
    parser.add_argument("--loop", choices=LOOPS, action="append", help="all three by default")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--seconds", type=float, default=420, help="no case is begun after that many")
    parser.add_argument("--profiles", type=Path, help="folder for tables of kernels")
    parser.add_argument("--eager", action="store_true", help="our step neither compiled nor recorded")
    parser.add_argument("--json", action="store_true", help="no table at the end")
    parser.add_argument("--here", action="store_true", help="in this process: for one case")
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        parser.error("this needs a CUDA device")
    chosen = [case for case in CASES if options.all or case.name in (options.case or ())]
    settings = Settings(
        options.steps,
        options.attention,
        not options.eager,
        options.profiles,
        tuple(options.loop or LOOPS),
        options.seconds,
    )
    if options.here:
        for case in chosen:
            for row in measure(case, settings):
                print(json.dumps(row), flush=True)
        return
    shown(rows(chosen, settings), COLUMNS, as_table=not options.json)


def rows(cases: Iterable[Case], settings: Settings) -> Iterator[Row]:
    """The rows of each case from a process of its own; one that ends badly gives a row, too."""
    started = time.monotonic()
    for case in cases:
        left = settings.seconds - (time.monotonic() - started)
        command = [sys.executable, "-m", "benchmarks.train_step", "--here", "--case", case.name]
        command += ["--steps", str(settings.steps), "--attention", settings.attention, "--seconds", str(left)]
        command += ["--profiles", str(settings.profiles)] if settings.profiles else []
        command += [] if settings.compile else ["--eager"]
        command += [word for loop in settings.loops for word in ("--loop", loop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
        if process.returncode:
            yield {"case": case.name, "loop": "", "failed": f"exit code {process.returncode}"}


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """A row a loop: the scripts' with and without checkpointing, and ours; ratios are to the first."""
    started = time.monotonic()
    family = families.get(BASES[case.recipe][0], {})
    batch = random_batch(case, family)
    rate = matrix_rate()
    floor_ms = 2 * forward_flops(case, family, batch) / rate * 1000
    loops: dict[str, Callable[[], Loop]] = {
        "eager, checkpointed": lambda: eager_loop(case, family, batch, checkpointed=True),
        "eager": lambda: eager_loop(case, family, batch, checkpointed=False),
        "eridiff": lambda: own_loop(case, family, batch, settings),
    }
    reference: float | None = None
    for name in settings.loops:
        row: Row = {"case": case.name, "loop": name}
        if time.monotonic() - started > settings.seconds:
            yield row | {"failed": "no time left"}
            continue
        free()
        try:
            found = timed(loops[name], settings, row)
        except Exception as failure:  # a loop that fails is a row; the next one is still of interest
            yield row | {"failed": f"{type(failure).__name__}: {failure}"[:600]}
            continue
        reference = reference or found["ms"]
        yield (
            row
            | found
            | {
                "ratio": round(reference / found["ms"], 2),
                "images_per_s": round(1000 * case.batch_size / found["ms"], 2),
                "of_floor_percent": round(100 * floor_ms / found["ms"], 1),
                "floor_ms": round(floor_ms, 1),
                "tflops": round(rate / 1e12),
            }
        )


@dataclass(frozen=True)
class Loop:
    """A step to repeat, the attention that it runs on, and what may be said of its gradients afterwards."""

    step: Callable[[], object]
    attention: str
    gradient_error: Callable[[], float] | None = None


def timed(build: Callable[[], Loop], settings: Settings, row: dict[str, Any]) -> dict[str, Any]:
    """Median milliseconds of a step, the seconds that the first ones took, and peak memory."""
    loop = build()
    with attention(loop.attention):
        synchronize()
        started = time.monotonic()
        for _ in range(FIRST_STEPS):
            loop.step()
        synchronize()
        found: dict[str, Any] = {"first_steps_s": round(time.monotonic() - started, 1)}
        times = []
        for _ in range(settings.steps):
            started = time.monotonic()
            loop.step()
            synchronize()
            times.append(time.monotonic() - started)
        found |= {"ms": round(1000 * statistics.median(times), 2), **peak_memory()}
        if loop.gradient_error is None:
            return found
        if settings.profiles is not None:
            write_profile(loop.step, settings.profiles / f"{row['case'].replace(':', '-')}.txt")
    try:
        return found | {"gradient_error": round(loop.gradient_error(), 5)}
    except (ModelError, torch.OutOfMemoryError) as failure:  # the times stand all the same
        return found | {"gradient_error": str(failure)[:300]}


def eager_loop(case: Case, family: ModelFamily, batch: Batch, *, checkpointed: bool) -> Loop:
    """The loop of diffusers' training scripts: `accelerator.autocast()`, peft, clip, fused AdamW."""
    denoiser: Any = random_denoiser(case.recipe).requires_grad_(False).train()
    parameters = list(adapt(case.recipe, denoiser).values())
    if checkpointed:
        denoiser.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    objective = family.objective

    def step() -> float:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            noisy = objective.noised(batch.clean, batch.noise, batch.t)
            prediction = family.predict(denoiser, noisy, batch.t, batch.cond)
            target = objective.target(batch.clean, batch.noise, batch.t)
            loss = mse_loss(prediction.float(), target.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().item()  # the scripts log it every step

    return Loop(step, PEER_ATTENTION)


def own_loop(case: Case, family: ModelFamily, batch: Batch, settings: Settings) -> Loop:
    """The step that `eridiff train` makes, its batch in pinned memory as the loader leaves it."""
    denoiser = kept_denoiser(case.recipe, Keep(case.quantize, 0))
    parameters = adapt(case.recipe, denoiser)
    train = Train(
        batch_size=case.batch_size,
        steps=10_000,
        attention=settings.attention,  # pyright: ignore[reportArgumentType]
        compile=settings.compile,
    )
    trainer = Trainer(family, denoiser, parameters, train, Processes(rank=0, size=1, device=DEVICE))
    waiting = batch.each(torch.Tensor.cpu)
    waiting = waiting.pinned() if DEVICE.type == "cuda" else waiting
    work = StepBatches(step=0, epoch=0, num_samples=len(batch), batches=(waiting,))

    def gradient_error() -> float:
        return check_gradients(
            family,
            denoiser,
            trainer.parameters,
            batch,
            trainer.gradient,
            backend=settings.attention,
            dtype=torch.bfloat16,
        )

    return Loop(lambda: trainer.advance(work, stop=False), settings.attention, gradient_error)


@torch.no_grad()
def forward_flops(case: Case, family: ModelFamily, batch: Batch) -> float:
    """Floating-point operations of the base's forward pass."""
    denoiser = random_denoiser(case.recipe)
    with FlopCounterMode(display=False) as counter:
        losses(family, denoiser, batch)
    return counter.get_total_flops()


def write_profile(step: Callable[[], object], path: Path) -> None:
    """Writes a table of the kernels of two steps, longest first."""
    with profile(
        activities=[ProfilerActivity.CUDA if DEVICE.type == "cuda" else ProfilerActivity.CPU],
        acc_events=True,  # there is one cycle; torch 2.11 warns that it would forget those before
    ) as found:
        for _ in range(2):
            step()
        synchronize()
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = found.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=80, max_name_column_width=110
    )
    path.write_text(shown)


if __name__ == "__main__":
    main()
