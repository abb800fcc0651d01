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
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import mse_loss
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_bases import BASES, DEVICE, random_denoiser
from eridiff import families
from eridiff.errors import ModelError
from eridiff.families.base import Conditioning, ModelFamily
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Network, Train
from eridiff.training.attention import attention, check_gradients
from eridiff.training.batches import StepBatches
from eridiff.training.distributed import Processes
from eridiff.training.step import Batch, losses
from eridiff.training.trainer import Trainer

RANK = 16
FIRST_STEPS = 3
"""Steps before the clock starts: ours compiles in the first and records in the second."""


@dataclass(frozen=True)
class Case:
    """One block of rows."""

    recipe: str
    batch_size: int
    text: tuple[int, int]
    """Length and width of the prompt embedding."""
    pooled: int
    side_px: int = 1024

    @property
    def name(self) -> str:
        """How it is chosen on the command line."""
        return f"{self.recipe}:{self.batch_size}"


CASES = (
    Case("sdxl", 1, (77, 2048), 1280),
    Case("flux-dev", 1, (512, 4096), 768),
    Case("sd35-medium", 1, (231, 4096), 2048),
    Case("sd35-large", 1, (231, 4096), 2048),
    Case("sdxl", 4, (77, 2048), 1280),
)
COLUMNS = (
    "recipe",
    "batch",
    "loop",
    "ms",
    "images_per_s",
    "ratio",
    "of_floor_percent",
    "peak_gb",
    "first_steps_s",
)


@dataclass(frozen=True)
class Settings:
    """How a case is measured."""

    steps: int
    attention: str
    compile: bool
    profiles: Path | None
    seconds: float = float("inf")
    """No loop is begun after that many."""


def main() -> None:
    """Times the chosen cases; prints rows as they come, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--case", choices=names, action="append", help="recipe:batch size")
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
        options.steps, options.attention, not options.eager, options.profiles, options.seconds
    )
    if options.here:
        for case in chosen:
            for row in measure(case, settings):
                print(json.dumps(row), flush=True)
        return
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for case in chosen:
        rows += in_own_process(case, settings, options.seconds - (time.monotonic() - started))
    if not options.json:
        Console(width=160).print(table(rows))


def in_own_process(case: Case, settings: Settings, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of a case, printed as they come; a process that ends badly gives a row, too."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--here", "--case", case.name]
    command += ["--steps", str(settings.steps), "--attention", settings.attention, "--seconds", str(seconds)]
    command += ["--profiles", str(settings.profiles)] if settings.profiles else []
    command += [] if settings.compile else ["--eager"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        row = {"recipe": case.recipe, "batch": case.batch_size, "error": f"exit code {process.returncode}"}
        print(json.dumps(row), flush=True)
        yield row


def measure(case: Case, settings: Settings) -> Iterator[dict[str, Any]]:
    """Three rows: the scripts' loop with and without checkpointing, and ours."""
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
    for name, build in loops.items():
        row: dict[str, Any] = {"recipe": case.recipe, "batch": case.batch_size, "loop": name}
        if time.monotonic() - started > settings.seconds:
            yield row | {"error": "no time left"}
            continue
        free()
        try:
            found = timed(build, settings, row)
        except Exception as failure:  # a loop that fails is a row; the next one is still of interest
            yield row | {"error": f"{type(failure).__name__}: {failure}"[:600]}
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
                "card": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
            }
        )


@dataclass(frozen=True)
class Loop:
    """A step to repeat, and what may be said of its gradients afterwards."""

    step: Callable[[], object]
    gradient_error: Callable[[], float] | None = None


def timed(build: Callable[[], Loop], settings: Settings, row: dict[str, Any]) -> dict[str, Any]:
    """Median milliseconds of a step, the seconds that the first ones took, and peak memory."""
    with attention(settings.attention):
        loop = build()
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
            write_profile(loop.step, settings.profiles / f"{row['recipe']}-{row['batch']}.txt")
    try:
        return found | {"gradient_error": round(loop.gradient_error(), 5)}
    except (ModelError, torch.OutOfMemoryError) as failure:  # the times stand all the same
        return found | {"gradient_error": str(failure)[:300]}


def eager_loop(case: Case, family: ModelFamily, batch: Batch, *, checkpointed: bool) -> Loop:
    """The loop of diffusers' training scripts: `accelerator.autocast()`, peft, clip, fused AdamW."""
    denoiser: Any = random_denoiser(case.recipe).requires_grad_(False).train()
    inject(denoiser, Network(linear=RANK, linear_alpha=RANK), family, seed=0)
    if checkpointed:
        denoiser.enable_gradient_checkpointing()
    parameters = list(lora_state(denoiser).values())
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

    return Loop(step)


def own_loop(case: Case, family: ModelFamily, batch: Batch, settings: Settings) -> Loop:
    """The step that `eridiff train` makes, its batch in pinned memory as the loader leaves it."""
    denoiser = random_denoiser(case.recipe).requires_grad_(False).train()
    inject(denoiser, Network(linear=RANK, linear_alpha=RANK), family, seed=0)
    parameters = lora_state(denoiser)
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

    return Loop(lambda: trainer.advance(work, stop=False), gradient_error)


def random_batch(case: Case, family: ModelFamily) -> Batch:
    """A batch as it comes from the store, on the device."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch_size, *shape, generator=generator, device=DEVICE)

    side = case.side_px
    cells = side // family.latent.stride
    sizes = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32, device=DEVICE)
    return Batch(
        sample_ids=tuple(map(str, range(case.batch_size))),
        clean=normal(family.latent.channels, cells, cells),
        noise=normal(family.latent.channels, cells, cells),
        t=torch.full((case.batch_size,), 0.5, device=DEVICE),
        cond=Conditioning(
            normal(*case.text).bfloat16(), normal(case.pooled).bfloat16(), sizes.repeat(case.batch_size, 1)
        ),
    )


@torch.no_grad()
def forward_flops(case: Case, family: ModelFamily, batch: Batch) -> float:
    """Floating-point operations of the base's forward pass."""
    denoiser = random_denoiser(case.recipe)
    with FlopCounterMode(display=False) as counter:
        losses(family, denoiser, batch)
    return counter.get_total_flops()


def matrix_rate(repeats: int = 20) -> float:
    """Floating-point operations a second of a bfloat16 matrix product."""
    side = 8192 if DEVICE.type == "cuda" else 64
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize()
    started = time.monotonic()
    for _ in range(repeats):
        a @ b
    synchronize()
    return 2 * side**3 * repeats / (time.monotonic() - started)


def write_profile(step: Callable[[], object], path: Path) -> None:
    """Writes a table of the kernels of two steps, longest first."""
    with profile(
        activities=[ProfilerActivity.CUDA if DEVICE.type == "cuda" else ProfilerActivity.CPU]
    ) as found:
        for _ in range(2):
            step()
        synchronize()
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = found.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=110
    )
    path.write_text(shown)


def synchronize() -> None:
    """Waits for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Lets go what the last loop left."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Peak of what tensors took, and of what torch held for them, recordings included."""
    if DEVICE.type != "cuda":
        return {"peak_gb": 0.0, "reserved_gb": 0.0}
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 1),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for people."""
    card, rate = next(((row["card"], row["tflops"]) for row in rows if "card" in row), ("no card", 0))
    shown = Table(title=f"{card}, 1024² px, rank {RANK}, {rate} TFLOP/s in bf16")
    for key in COLUMNS:
        shown.add_column(key)
    for row in rows:
        cells = [str(row.get(key, "")) for key in COLUMNS]
        if "error" in row:
            cells[3] = row["error"][:60]
        shown.add_row(*cells)
    return shown


if __name__ == "__main__":
    main()
