"""`eridiff registry`: what was judged, which LoRA is the champion, and changing that by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from eridiff.errors import DataError
from eridiff.registry import History, Registry, Version, names
from stages.printing import AsJson, output, print_json

app = typer.Typer(
    name="registry",
    no_args_is_help=True,
    help="Champions: which LoRA of a name is served, what it beat, and how to change that by hand.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name.")]
Folder = Annotated[Path, typer.Option("--registry", help="The recipe's `storage.registry`.")]

_HERE = Path("registry")


@app.command("list")
def list_names(root: Folder = _HERE, as_json: AsJson = False) -> None:
    """All names with their champions."""
    found = {name: Registry(root, name).history() for name in names(root)}
    if as_json:
        print_json(
            {
                name: history.champion and dataclasses.asdict(history.champion)
                for name, history in found.items()
            }
        )
        return
    served_in = Column("served in", overflow="fold")
    table = Table("name", "champion", "hold-out loss", "versions", "judged", served_in)
    for name, history in found.items():
        best = history.champion
        shown = (str(best.number), _loss(best.verdict.loss)) if best else ("none", "")
        last = history.versions[-1].at if history.versions else ""
        table.add_row(name, *shown, str(len(history.versions)), last, history.served or "")
    output.print(table)


@app.command()
def show(name: Name, root: Folder = _HERE, as_json: AsJson = False) -> None:
    """Every version of a name: what was decided, and why."""
    registry = _known(root, name)
    history = registry.history()
    if as_json:
        print_json(dataclasses.asdict(history))
        return
    table = Table("version", "decision", "hold-out loss", "rival", "dataset", "run", "judged", "file")
    for version in history.versions:
        verdict = version.verdict
        table.add_row(
            f"{version.number}{_mark(history, version)}",
            verdict.decision,
            _loss(verdict.loss),
            _loss(verdict.rival_loss),
            verdict.snapshot[:12],
            verdict.run,
            version.at,
            "kept" if registry.file(version).is_file() else "",
        )
    output.print(table)


@app.command()
def promote(
    name: Name,
    number: Annotated[int, typer.Argument(metavar="VERSION", help="Its number in `registry show`.")],
    root: Folder = _HERE,
) -> None:
    """Makes a version the champion, whatever was decided about it."""
    registry = _known(root, name)
    _tell(registry, registry.promote(number))


@app.command()
def rollback(name: Name, root: Folder = _HERE) -> None:
    """Makes the previous champion the champion again; once more goes back one more."""
    registry = _known(root, name)
    _tell(registry, registry.rollback())


def _known(root: Path, name: str) -> Registry:
    """The registry of a name that something was judged under."""
    known = names(root)
    if name not in known:
        raise DataError(
            "The registry has no LoRA of this name.",
            where=root,
            found=name,
            wanted=", ".join(known) or "nothing: no LoRA was published there yet",
            fix="give a recipe's name, and its `storage.registry` with --registry",
        )
    return Registry(root, name)


def _tell(registry: Registry, version: Version) -> None:
    served = registry.history().served
    where = f", served in {served}" if served else ""
    output.print(f"The champion of {registry.name} is version {version.number}{where}.", soft_wrap=True)


def _mark(history: History, version: Version) -> str:
    return " (champion)" if history.champion == version else ""


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
