"""What a run shows on its page in Prefect: a table of stages, and the grid as a thumbnail."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from eridiff.recipe import Recipe
from stages.stage import human_bytes

THUMBNAIL_PX = 640


def publish_results(recipe: Recipe, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts stages, outputs and the grid of a run on its page."""
    key = "".join(letter if letter.isalnum() else "-" for letter in recipe.name.lower())
    rows = [
        {
            "stage": name,
            "done": report["done"],
            "reused": report["reused"],
            "quarantined": report["quarantined"],
            "seconds": round(report["seconds"], 1),
            "written": human_bytes(report["bytes_written"]),
        }
        for name, report in reports.items()
    ]
    create_table_artifact(rows, key=f"{key}-stages", description="Stages: made, found made, quarantined")
    outputs = {name: path for report in reports.values() for name, path in report["outputs"].items()}
    lines = [f"- **{name}**: `{value}`" for name, value in outputs.items()]
    create_markdown_artifact("\n".join(["# Results", *lines]), key=f"{key}-results")
    grid = outputs.get("grid")
    if grid and Path(grid).is_file():
        create_image_artifact(thumbnail(Path(grid)), key=f"{key}-grid", description=f"Whole grid: {grid}")


def thumbnail(path: Path) -> str:
    """A data URI of an image, small enough for a database row."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
