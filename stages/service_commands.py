"""Commands around the pipeline: publishing, housekeeping, watching folders, and serving it all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from eridiff.encoding.spaces import workspace
from eridiff.errors import RecipeError, StoreError
from eridiff.recipe import Recipe
from eridiff.store.garbage import remove
from eridiff.store.workspace import Workspace
from stages import pipeline
from stages.printing import AsJson, output, print_json, tell
from stages.reclaim import Places, garbage
from stages.stage import human_bytes
from stages.verify import faults

POOL = "eridiff-local"

app = typer.Typer()

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, e.g. configs/sdxl.yaml.")]
RecipePaths = Annotated[
    list[Path] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes whose storage is meant.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: `--set publish.margin=0.01`."),
]
Pool = Annotated[str, typer.Option(help="The process pool that deployments name.")]
Jobs = Annotated[int, typer.Option(min=1, help="Flow runs at a time on this machine.")]
Data = Annotated[
    Path, typer.Option(help="The folder of shards, latents and embeddings; name a recipe where it is a URL.")
]
Runs = Annotated[Path | None, typer.Option(show_default="runs", help="The folder of runs.")]
RegistryFolder = Annotated[
    Path | None, typer.Option(show_default="registry", help="The folder of champions.")
]


@app.command()
def publish(path: RecipePath, settings: Settings = None, as_json: AsJson = False) -> None:
    """The LoRA against its name's champion on the hold-out; the better one is served in `publish.to`."""
    report = pipeline.run_stage("publish", pipeline.load_recipe(path, settings or ()))
    if as_json:
        print_json(report.as_dict())
        return
    for name, value in report.outputs.items():
        tell(name, value)


@app.command()
def gc(
    paths: RecipePaths = None,
    data: Data = Path("data"),
    runs: Runs = None,
    registry: RegistryFolder = None,
    old_runs: Annotated[
        bool, typer.Option("--old-runs", help="Runs, too, that are neither newest nor registered.")
    ] = False,
    hours: Annotated[float, typer.Option(min=0, help="Files younger than this stay.")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this, only say.")] = False,
    as_json: AsJson = False,
) -> None:
    """What no snapshot, run, champion or recipe leads to any more. Says only, unless told to delete.

    Name recipes that were prepared and not trained yet, so that their prompts stay embedded.
    """
    recipes = [pipeline.load_recipe(path) for path in paths or ()]
    places = _places(recipes, data, runs, registry)
    found = garbage(places, recipes, old_runs=old_runs, min_age_s=hours * 3600)
    sizes = [one.nbytes for one in found]
    if delete:
        remove(found)
    if as_json:
        shown = zip(found, sizes, strict=True)
        print_json(
            [{"what": g.what, "why": g.why, "path": str(g.paths[0]), "bytes": size} for g, size in shown]
        )
        return
    if not found:
        output.print("Nothing can go: everything is led to.")
        return
    table = Table("what", "why", Column("path", overflow="fold"), "size")
    for one, size in zip(found, sizes, strict=True):
        table.add_row(one.what, one.why, str(one.paths[0]), human_bytes(size))
    output.print(table)
    total = human_bytes(sum(sizes))
    output.print(f"{total} deleted." if delete else f"{total} can go: `--delete` deletes it.")


@app.command()
def verify(
    paths: RecipePaths = None,
    data: Data = Path("data"),
    runs: Runs = None,
    registry: RegistryFolder = None,
    as_json: AsJson = False,
) -> None:
    """Reads every byte again: images, latents, embeddings, LoRA files, champions. Exit code 4 if any changed.

    Damaged items are marked, so that the next run makes them anew.
    """
    recipes = [pipeline.load_recipe(path) for path in paths or ()]
    found = faults(_places(recipes, data, runs, registry))
    if as_json:
        print_json([dataclasses.asdict(fault) for fault in found])
    elif found:
        table = Table(*(Column(header, overflow="fold") for header in ("where", "what", "do")))
        for fault in found:
            table.add_row(fault.where, fault.what, fault.fix)
        output.print(table)
    else:
        output.print("Everything is as it was written.")
    if found:
        raise StoreError(
            "One thing is not as it was written."
            if len(found) == 1
            else f"{len(found)} things are not as they were written.",
            fix="see the list above",
        )


@app.command()
def watch(
    path: RecipePath,
    settings: Settings = None,
    quiet: Annotated[float, typer.Option(min=0, help="Seconds without a change before it is told.")] = 30.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 5.0,
) -> None:
    """Tells Prefect when the recipe's images changed, so that `retrain/on-new-data` runs."""
    from stages import watch as watching

    watching.watch(pipeline.load_recipe(path, settings or ()), path, quiet_s=quiet, every_s=every)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
    pool: Pool = POOL,
    jobs: Jobs = 1,
) -> None:
    """Prefect's server, work pool, GPU limit, automations, deployments and a worker, until Ctrl-C.

    Ctrl-C lets runs save a checkpoint before anything ends.
    """
    from stages import serve as serving

    serving.serve(host=host, port=port, pool=pool, jobs=jobs)


@app.command()
def worker(
    url: Annotated[str, typer.Option(envvar="PREFECT_API_URL", help="The server's API.")],
    pool: Pool = POOL,
    jobs: Jobs = 1,
) -> None:
    """A worker on this machine for a server elsewhere, until Ctrl-C or SIGTERM; its runs save first."""
    from stages import serve as serving

    serving.work(url=url, pool=pool, jobs=jobs)


def _places(recipes: list[Recipe], data: Path, runs: Path | None, registry: Path | None) -> Places:
    """Where the recipes' storage is, or where the options say.

    Whoever names a folder means one that is there. One that nobody named may still be to come: runs begin
    with a training, champions with a publication. Data are there from the first ingest on.
    """
    kept = {Places(workspace(recipe), recipe.storage.registry) for recipe in recipes}
    if len(kept) > 1:
        raise RecipeError("These recipes have different storage.", fix="name those of one storage at a time")
    named = Places(Workspace(data, runs or Path("runs")), registry or Path("registry"))
    places = next(iter(kept), named)
    for folder in (places.workspace.data, runs, registry):
        if folder is not None and not folder.is_dir():
            raise StoreError(
                "There is no such folder.",
                where=folder,
                fix="name a recipe that was ingested, or the folders of its `storage`",
            )
    return places
