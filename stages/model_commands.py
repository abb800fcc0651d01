"""Commands about model files: what one is, a LoRA in other names, a base with a LoRA in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from stages import models
from stages.printing import AsJson, output, print_json, tell
from stages.stage import human_bytes

app = typer.Typer()

LoraPath = Annotated[Path, typer.Argument(metavar="LORA", help="A LoRA file.")]
OutPath = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; must not exist yet.")]


@app.command()
def inspect(path: Annotated[Path, typer.Argument(metavar="FILE|FOLDER")], as_json: AsJson = False) -> None:
    """What a model file, diffusers folder or LoRA is: family, variant, parts, types, ranks, provenance.

    Only headers are read: it takes no longer for 24 GB than for 24 MB.
    """
    found = models.inspect(path)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            _print_table(value)
        elif value:
            tell(name, _shown(value))


@app.command()
def export(
    lora: LoraPath,
    out: OutPath,
    file_format: Annotated[
        Literal["kohya", "diffusers"], typer.Option("--format", help="Names of the new file.")
    ],
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="Type of the factors; as they are by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A LoRA file in other names, with the same effect: whoever wrote it."""
    _show(models.export(lora, out, file_format=file_format, dtype=dtype), as_json)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Names the base, in `model`.")],
    lora: LoraPath,
    out: OutPath,
    strength: Annotated[float, typer.Option(help="The LoRA's multiplier.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """The recipe's base with a LoRA merged in: a file for a base in one file, a folder for a folder."""
    _show(models.merge(recipe, lora, out, strength=strength), as_json)


def _show(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        tell(name, _shown(value))


def _shown(value: Any) -> str:
    """A value for a person: one line a pair, long texts cut."""
    if isinstance(value, Mapping):
        return "".join(f"\n  {key}: {_cut(entry)}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else _cut(value)


def _cut(value: Any, most: int = 160) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        cells = {**row, "bytes": human_bytes(row["bytes"])} if "bytes" in row else row
        table.add_row(*("" if cell is None else _cut(cell) for cell in cells.values()))
    output.print(table)
