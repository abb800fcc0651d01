"""A flow as a command: `python -m flows.NAME RECIPE`, in this process, with the exit codes of `eridiff`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import Flow

from eridiff.errors import EridiffError
from eridiff.recipe import Recipe
from flows.own_server import some_server
from stages import pipeline
from stages.cli import log_to_terminal
from stages.stage import console


def run_flow_here(flow: Flow[..., Any], summary: str, arguments: Sequence[str] | None = None) -> None:
    """Runs a flow that takes `config` and `overrides` with a command line's, and exits with its code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m flows.{Path(sys.argv[0]).stem}", description=summary.split("\n")[0]
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, e.g. configs/demo-sdxl.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    chosen = parser.parse_args(arguments)
    log_to_terminal()
    # Prefect hands SIGTERM on once the run's end is told, and only an orderly exit ends its server.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        recipe = pipeline.load_recipe(Path(chosen.recipe), chosen.set)
        keys = [text.partition("=")[0] for text in chosen.set]
        with some_server():
            found = flow(config=chosen.recipe, overrides=nested(recipe, keys))
    except EridiffError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    for name, value in found.items():
        console.print(f"[bold]{name}[/]: {value}", highlight=False, soft_wrap=True)


def nested(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """The values that dotted keys have in a resolved recipe, section in section; a list is given whole.

    Args:
        recipe: resolved, the keys' overrides included.
        keys: as `train.steps` or `datasets.0.resolution`.
    """
    whole = recipe.model_dump(mode="json")
    chosen: dict[str, Any] = {}
    for key in keys:
        source, target = whole, chosen
        *sections, last = key.strip().split(".")
        for section in sections:
            if isinstance(source[section], list):
                last = section
                break
            source, target = source[section], target.setdefault(section, {})
        target[last] = source[last]
    return chosen
