"""The command line: `eridiff STAGE RECIPE`, and what looks at a recipe without doing anything."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from eridiff import families, recipe
from eridiff.errors import EridiffError, RecipeError
from eridiff.recipe import Recipe
from stages import model_commands, pipeline, registry_commands, service_commands
from stages.printing import AsJson, output, print_json, tell
from stages.stage import StageReport, console, human_bytes

app = typer.Typer(
    name="eridiff",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""LoRA fine-tuning of image models, in stages that keep what they made.

    A recipe is one YAML file. `eridiff run configs/demo-sdxl.yaml` runs its four stages; each can also be run
    by itself, killed at any moment, and run again: it goes on where it was.

    Exit codes: 0 done, 2 a bad recipe, 3 images that are bad or were not ingested, 4 a store that is damaged,
    cannot be written or lacks what an earlier stage makes, 5 a model that is missing or does not fit, 130
    interrupted after saving.""",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, e.g. configs/sdxl.yaml.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: `--set train.steps=500`. Repeatable."),
]
Half = Annotated[
    Literal["all", "latents", "text"], typer.Option(help="Which half: they can run on different machines.")
]
Part = Annotated[
    str, typer.Option(metavar="I/N", help="Only the I-th of N parts: `--part 1/4` to `--part 4/4`.")
]


def load(path: Path, settings: Sequence[str] | None) -> Recipe:
    """The recipe with the command line's overrides."""
    return pipeline.load_recipe(path, settings or ())


@app.command()
def ingest(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """Images and captions into webdataset shards and a snapshot, with a report of buckets.

    Your files are only read. A second run looks at file times alone; one more image costs one image.
    """
    _show(pipeline.run_stage("ingest", load(path, settings)), as_json)


@app.command()
def precompute(
    path: RecipePath,
    settings: Settings = None,
    half: Half = "all",
    part: Part = "1/1",
    as_json: AsJson = False,
) -> None:
    """VAE latents and text embeddings to disk, each once.

    Only what is missing is made: an edited caption is one text encoding, a renamed file none. Several
    processes or machines can share the work: `--half text --part 1/4`.
    """
    from stages import precompute as stage

    chosen = load(path, settings)
    _show(pipeline.record(chosen, stage.run(chosen, half=half, part=parse_part(part))), as_json)


@app.command()
def train(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """The LoRA, from cached tensors alone.

    Ctrl-C saves a checkpoint; run it again and it goes on at that step, exactly. Several GPUs:
    `torchrun --nproc-per-node 4 -m stages.train RECIPE`.
    """
    _show(pipeline.run_stage("train", load(path, settings)), as_json)


@app.command()
def evaluate(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """Sample grids, the validation loss and a report page, with the LoRA file that you would use."""
    _show(pipeline.run_stage("evaluate", load(path, settings)), as_json)


@app.command()
def run(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """All stages, one after the other, in this process."""
    reports = list(pipeline.run_all(load(path, settings)))
    if as_json:
        print_json([report.as_dict() for report in reports])
        return
    if not any(report.done for report in reports):
        output.print("Nothing to do: every stage of this recipe is finished.")
    for name, value in reports[-1].outputs.items():
        tell(name, value)


@app.command()
def plan(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """What a run would do: what is there, what is missing, how much it would write. Touches nothing."""
    plans = _plans(load(path, settings))
    if as_json:
        print_json(plans)
        return
    table = Table("stage", "there", "to do", "quarantined", "to write", "why")
    for row in plans:
        why = "; ".join(f"{key}: {value}" for key, value in row["details"].items())
        counts = (str(row[key]) for key in ("done", "missing", "quarantined"))
        table.add_row(row["stage"], *counts, human_bytes(row["bytes_to_write"]), why)
    output.print(table)


@app.command()
def status(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """How far each stage is: done, missing, quarantined, bytes written, seconds spent."""
    chosen = load(path, settings)
    rows = []
    for row in _plans(chosen):
        past = pipeline.recorded(chosen, row["stage"])
        counts = {key: row[key] for key in ("stage", "done", "missing", "quarantined")}
        rows.append(
            counts | {"bytes": past.get("bytes_written", 0), "seconds": past.get("total_seconds", 0.0)}
        )
    if as_json:
        print_json(rows)
        return
    table = Table("stage", "done", "missing", "quarantined", "bytes", "seconds")
    for row in rows:
        counts = (str(row[key]) for key in ("stage", "done", "missing", "quarantined"))
        table.add_row(*counts, human_bytes(row["bytes"]), f"{row['seconds']:.1f}")
    output.print(table)


@app.command(name="recipe")
def show_recipe(
    path: Annotated[Path | None, typer.Argument(metavar="[RECIPE]")] = None,
    settings: Settings = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """A recipe as it is understood, every default written out."""
    if schema:
        print_json(recipe.schema(families.option_models()))
    elif path is None:
        raise RecipeError("Which recipe?", wanted="eridiff recipe RECIPE, or eridiff recipe --schema")
    elif as_json:
        print_json(load(path, settings).model_dump(mode="json"))
    else:
        sys.stdout.write(recipe.dump(load(path, settings)))


def parse_part(text: str) -> tuple[int, int]:
    """`"2/4"` as (2, 4)."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise RecipeError("This is no part.", where="--part", found=text, wanted="I/N with 1 <= I <= N")
    return int(index), int(count)


def _plans(chosen: Recipe) -> list[dict[str, Any]]:
    rows = []
    for name, found in zip(pipeline.NAMES, pipeline.look(chosen), strict=True):
        counts = {"done": found.done, "missing": found.missing, "quarantined": found.quarantined}
        rows.append(
            {"stage": name, **counts, "bytes_to_write": found.bytes_to_write, "details": dict(found.details)}
        )
    return rows


def _show(report: StageReport, as_json: bool) -> None:
    if not _speaks():
        return
    if as_json:
        print_json(report.as_dict())
        return
    for name, value in report.outputs.items():
        tell(name, value)


def _speaks() -> bool:
    """Whether this process tells what is done: of those that torchrun started, the first does."""
    return os.environ.get("RANK", "0") == "0"


app.add_typer(model_commands.app)
app.add_typer(service_commands.app)
app.add_typer(registry_commands.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line and exits with its code; errors that a user can act on are printed plainly."""
    log_to_terminal()
    try:
        app(arguments)
    except EridiffError as error:
        console.print(Text("error:", "bold red"), Text(str(error)), soft_wrap=True)
        raise SystemExit(error.exit_code) from None


def log_to_terminal() -> None:
    """Puts what stages log on the terminal, beside their progress bars."""
    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("eridiff")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if _speaks() else logging.WARNING)
    logger.propagate = False


if __name__ == "__main__":
    main()
