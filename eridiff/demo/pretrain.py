"""Make the three tiny bases: `python -m eridiff.demo.pretrain --family all --out DIR --minutes 9`.

Two autoencoders (4 and 16 channels) are trained side by side, then the denoisers, which compile their kernels
meanwhile. Every training stops at its share of the time, saves what it has, and fails alone: one
that dies is started once more without compiled kernels.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from eridiff.demo.corpus import Corpus, draw_corpus
from eridiff.demo.drawing import Style

FAMILIES = ("sdxl", "sd35", "flux")
CHANNELS: Mapping[str, int] = {"sdxl": 4, "sd35": 16, "flux": 16}
OPTIONS: Mapping[str, Mapping[str, Any]] = {"sdxl": {}, "sd35": {"t5_length": 32}, "flux": {"t5_length": 32}}
"""`model.options` of the bases: captions are short, so T5's row is."""

_VAE_SHARE, _DENOISER_SHARE = 0.62, 0.93
_RETRY_MIN_S = 60
_GRACE_S = {"cuda": 25, "cpu": 600}
"""How long after the end a job may still save and sample."""
_ATTENTION_TOLERANCE = 0.2
"""Above bfloat16's rounding, far below a wrong gradient."""
_NEON_DIVISOR = 12

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One pretraining.

    Attributes:
        families: those whose base is made.
        out: an archive and a sheet a family, and the autoencoders' sheets.
        work: scenes, latents, autoencoders and the bases as folders.
        scenes: number of plain scenes.
        batch: scenes in a denoiser's step.
        vae_batch: scenes in an autoencoder's step.
        size: `demo`, or `tiny` to try the program.
        device: `cuda` or `cpu`.
        fast: compile and graph the steps (CUDA).
        seed: of everything.
        start: `time.time()` at the beginning.
        seconds: time in all.
    """

    families: tuple[str, ...]
    out: Path
    work: Path
    scenes: int
    batch: int
    vae_batch: int
    size: str
    device: str
    fast: bool
    seed: int
    start: float
    seconds: float

    def at(self, share: float) -> float:
        """`time.time()` when this share of the time is over."""
        return self.start + share * self.seconds

    @property
    def plain(self) -> Corpus:
        """The plain scenes, once they are drawn."""
        return Corpus(self.work / "plain", self.scenes)

    @property
    def neon(self) -> Corpus:
        """The neon scenes, once they are drawn."""
        return Corpus(self.work / "neon", max(16, self.scenes // _NEON_DIVISOR))

    def ready(self, job: str) -> Path:
        """A file that says that a job has compiled its kernels."""
        return self.work / f"{job}.ready"

    def vae_folder(self, channels: int) -> Path:
        """Where the autoencoder of that many channels lies, once it is trained."""
        return self.work / f"vae-{channels}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if a family's base could not be made."""
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7.0f ms %(message)s", stream=sys.stdout)
    plan = _plan(_parser().parse_args(arguments))
    plan.out.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, tuple[Callable[..., None], Any]] = {
        f"vae-{channels}": (make_vae, channels) for channels in sorted({CHANNELS[f] for f in plan.families})
    }
    jobs |= {family: (make_base, family) for family in plan.families}
    context = get_context("spawn")
    running = {name: context.Process(target=job, args=(plan, item)) for name, (job, item) in jobs.items()}
    autoencoders = {name: process for name, process in running.items() if name.startswith("vae")}
    for process in autoencoders.values():
        process.start()
    processors = max(1, (os.cpu_count() or 2) - 2)
    corpora: tuple[tuple[Corpus, Style], ...] = ((plan.neon, "neon"), (plan.plain, "plain"))
    for corpus, style in corpora:
        first_seed = plan.seed * 10_000_000 + (5_000_000 if style == "neon" else 0)
        draw_corpus(corpus.folder, corpus.count, style, first_seed=first_seed, processes=processors)
        log.info("drew %d %s scenes in %.0f s", corpus.count, style, time.time() - plan.start)
    while any(process.is_alive() and not plan.ready(name).exists() for name, process in autoencoders.items()):
        time.sleep(0.2)  # their kernels are wanted first: let them have all processors
    for name in plan.families:
        running[name].start()
    failed = _finish(plan, jobs, running, context)
    made = [family for family in plan.families if (plan.out / f"demo-{family}.tar").is_file()]
    log.info("made %s; failed: %s; %.0f s", made, failed or "none", time.time() - plan.start)
    return 0 if made == list(plan.families) else 1


def make_vae(plan: Plan, channels: int) -> None:
    """Train the autoencoder of that many channels, and encode all plain scenes with it."""
    torch = _prepare(plan)
    from eridiff.demo.architecture import build_vae
    from eridiff.demo.vae_training import Pace, VaeTrainer, save_latents

    family = next(name for name, count in CHANNELS.items() if count == channels)
    torch.manual_seed(plan.seed + channels)
    vae = build_vae(family, _size(plan)).to(torch.device(plan.device))
    wait_for(plan.neon.folder / "captions.json", plan.at(1))
    wait_for(plan.plain.folder / "captions.json", plan.at(1))
    pace = Pace(plan.device, plan.vae_batch, plan.fast, plan.at(_VAE_SHARE))
    trainer = VaeTrainer(vae, plan.plain, plan.neon, pace, seed=plan.seed)
    plan.ready(f"vae-{channels}").touch()
    log.info("vae %d: ready", channels)
    trainer.train()
    unfinished = plan.vae_folder(channels).with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    vae.save_pretrained(unfinished)
    save_latents(unfinished, *trainer.latents())
    unfinished.rename(plan.vae_folder(channels))
    sheet, psnr = trainer.reconstructions(12)
    sheet.save(plan.out / f"vae-{channels}.png")
    log.info("vae %d: PSNR %.1f dB", channels, psnr)


def make_base(plan: Plan, name: str) -> None:
    """Train the family's denoiser and write the whole base, its archive and a sheet of samples."""
    torch = _prepare(plan)
    from eridiff import families
    from eridiff.demo.architecture import build_denoiser, save_frozen_parts
    from eridiff.demo.denoiser_training import Cache, DenoiserTrainer, attention_error, encode_captions
    from eridiff.demo.sheet import base_of
    from eridiff.demo.vae_training import Pace

    family, folder, device = families.get(name, OPTIONS[name]), plan.work / name, torch.device(plan.device)
    save_frozen_parts(name, folder, seed=plan.seed, size=_size(plan), dtype=torch.float16)
    wait_for(plan.plain.folder / "captions.json", plan.at(1))
    encoders = family.load_text_encoders(base_of(family, folder), device=device, dtype=torch.float32)
    prompts, empties = encode_captions(family, encoders, plan.plain.captions())
    del encoders
    torch.manual_seed(plan.seed + len(name))
    denoiser = build_denoiser(name, _size(plan)).to(device).train()
    empty = torch.zeros(plan.scenes, CHANNELS[name], 16, 16, dtype=torch.float16, device=device)
    cache = Cache(empty, torch.ones_like(empty), prompts, empties)
    pace = Pace(plan.device, plan.batch, plan.fast, plan.at(_DENOISER_SHARE))
    trainer = DenoiserTrainer(family, denoiser, cache, pace, seed=plan.seed)
    error = attention_error(trainer)
    log.info("%s: ready; gradients of attention are within %.4f of plain maths", name, error)
    if not error < _ATTENTION_TOLERANCE:
        raise FloatingPointError(f"attention's gradients are wrong by {error}")
    vae_folder = plan.vae_folder(CHANNELS[name])
    wait_for(vae_folder, plan.at(1))
    _fill(cache, vae_folder)
    trainer.train()
    _write_base(plan, name, family, denoiser, vae_folder)


def wait_for(path: Path, deadline: float) -> None:
    """Wait until another process has made `path`.

    Raises:
        TimeoutError: it was not there at `deadline`.
    """
    while not path.exists():
        if time.time() > deadline:
            raise TimeoutError(f"{path} was not made in time")
        time.sleep(0.1)


def _fill(cache: Any, vae_folder: Path) -> None:
    import numpy as np
    import torch

    cache.mean.copy_(torch.from_numpy(np.load(vae_folder / "mean.npy")))
    cache.deviation.copy_(torch.from_numpy(np.load(vae_folder / "std.npy")))


def _write_base(plan: Plan, name: str, family: Any, denoiser: Any, vae_folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL

    from eridiff.demo.architecture import LAYOUTS, build_vae
    from eridiff.demo.sheet import sample_sheet
    from eridiff.demo.vae_training import fold_to_family

    folder = plan.work / name
    vae = build_vae(name, _size(plan))
    vae.load_state_dict(AutoencoderKL.from_pretrained(vae_folder).state_dict())
    fold_to_family(vae, scale=family.latent.scale, shift=family.latent.shift)
    vae.half().save_pretrained(folder / "vae")
    denoiser.cpu().half().save_pretrained(folder / LAYOUTS[name].denoiser)
    archive = plan.out / f"demo-{name}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=name)
    log.info("%s: saved, %.2f MB", name, archive.stat().st_size / 1e6)
    sheet = sample_sheet(family, folder, plan.work / f"tiles-{name}", torch.device(plan.device))
    sheet.save(plan.out / f"sheet-{name}.png")
    log.info("%s: sampled", name)


def _finish(plan: Plan, jobs: dict[str, Any], running: dict[str, Any], context: Any) -> list[str]:
    """Wait for all jobs; one that fails early is started again without compiled kernels."""
    failed, retried = [], set()
    while running:
        for name, process in list(running.items()):
            process.join(timeout=0.2)
            if process.exitcode is None:
                if time.time() < plan.at(1) + _GRACE_S[plan.device]:
                    continue
                process.terminate()
                process.join()
            del running[name]
            if process.exitcode == 0:
                continue
            share = _VAE_SHARE if name.startswith("vae") else _DENOISER_SHARE
            log.error("%s failed with exit code %s", name, process.exitcode)
            if name in retried or not plan.fast or plan.at(share) - time.time() < _RETRY_MIN_S:
                failed.append(name)
                continue
            job, item = jobs[name]
            running[name] = context.Process(target=job, args=(replace(plan, fast=False), item))
            running[name].start()
            retried.add(name)
    return failed


def _prepare(plan: Plan) -> Any:
    """Torch, set up in a new process: no cuDNN attention, whose gradients were wrong on this hardware."""
    import torch

    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7.0f ms %(message)s", stream=sys.stdout)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if plan.device == "cpu":
        torch.set_num_threads(1)
    return torch


def _size(plan: Plan) -> Any:
    from eridiff.demo.sizes import DEMO, TINY

    return DEMO if plan.size == "demo" else TINY


def _plan(arguments: argparse.Namespace) -> Plan:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Plan(
        families=FAMILIES if arguments.family == "all" else (arguments.family,),
        out=arguments.out,
        work=arguments.work or arguments.out / "work",
        scenes=arguments.scenes,
        batch=arguments.batch,
        vae_batch=arguments.vae_batch,
        size=arguments.size,
        device=device,
        fast=device == "cuda" and not arguments.plain_kernels,
        seed=arguments.seed,
        start=time.time(),
        seconds=60 * arguments.minutes,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eridiff.demo.pretrain", description=__doc__)
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder for archives and sheets")
    parser.add_argument("--work", type=Path, help="folder for all else (default: OUT/work)")
    parser.add_argument("--minutes", type=float, default=9, help="time in all")
    parser.add_argument("--scenes", type=int, default=80_000, help="plain scenes to draw")
    parser.add_argument("--batch", type=int, default=256, help="scenes in a denoiser's step")
    parser.add_argument("--vae-batch", type=int, default=32, help="scenes in an autoencoder's step")
    parser.add_argument("--size", choices=("demo", "tiny"), default="demo")
    parser.add_argument("--plain-kernels", action="store_true", help="neither compile nor graph the steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
