"""Kills precompute at random moments: `python kill.py CALM_RECIPE RECIPE KILLS`.

A process of its own, so that children can be forked that have every library loaded already. Runs the calm
recipe undisturbed, and starts the other one until so many of its runs were killed unfinished.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from eridiff.encoding.spaces import latent_space, text_space
from eridiff.recipe import Recipe
from stages import pipeline, precompute


def files_of(recipe: Recipe) -> set[str]:
    """Names of all files of the stores' parts, temporary ones too."""
    folders = [space(recipe).store().folder / "parts" for space in (latent_space, text_space)]
    return {name for folder in folders if folder.exists() for name in os.listdir(folder)}  # noqa: PTH208


def kill_one(recipe: Recipe, chance: random.Random) -> bool:
    """Starts a run and kills it: early, or once it has begun to write; says whether it was unfinished."""
    before, after_a_write = files_of(recipe), chance.random() < 0.7
    child = os.fork()
    if child == 0:
        try:
            precompute.run(recipe)
        finally:
            os._exit(0)
    if after_a_write:
        give_up = time.monotonic() + 30
        while files_of(recipe) == before and time.monotonic() < give_up:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
    else:
        time.sleep(chance.uniform(0, 0.5))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(calm: str, disturbed: str, kills: str) -> None:
    """Kills `kills` unfinished runs; after each, reads everything that is there."""
    torch.set_num_threads(1)
    precompute.run(pipeline.load_recipe(Path(calm)))
    recipe, chance = pipeline.load_recipe(Path(disturbed)), random.Random(0)
    unfinished = 0
    while unfinished < int(kills):
        if precompute.plan(recipe).complete:  # start over: a run with nothing to do cannot be disturbed
            shutil.rmtree(latent_space(recipe).root)
            shutil.rmtree(text_space(recipe).root)
        unfinished += kill_one(recipe, chance)
        for space in (latent_space(recipe), text_space(recipe)):
            reader = space.store().open()
            for key in sorted(space.store().keys()):
                reader.get(key)


if __name__ == "__main__":
    main(*sys.argv[1:])
