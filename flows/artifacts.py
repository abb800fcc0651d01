"""What a run shows on its page in Prefect, from the files that its stages wrote."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from safetensors import safe_open

from eridiff.images.bucket_report import bucket_rows
from eridiff.recipe import Recipe
from eridiff.registry import Registry
from eridiff.store.snapshots import Snapshot
from flows.curve import loss_curve
from stages.dataset import current_snapshot
from stages.stage import human_bytes

THUMBNAIL_PX = 640
SHOWN_ROWS = 200
CELL_LENGTH = 40

Reports = Mapping[str, Mapping[str, Any]]


def show_stage(name: str, recipe: Recipe, reports: Reports) -> None:
    """Puts what a stage made on the page as soon as it is made."""
    key = artifact_key(recipe.name)
    if name == "ingest":
        _show_dataset(key, current_snapshot(recipe))
    elif name == "precompute":
        _show_cache(key, {label: row for label, row in reports.items() if label.startswith("precompute")})
    elif name == "train":
        _show_training(key, reports["train"]["outputs"])
    elif name == "evaluate":
        _show_grid(key, reports["evaluate"]["outputs"])


def show_results(recipe: Recipe, reports: Reports) -> None:
    """Puts a table of stages and the paths of all results on the page."""
    key = artifact_key(recipe.name)
    create_table_artifact(
        [_stage_row(name, report) for name, report in reports.items()],
        key=f"{key}-stages",
        description="Stages: made, found made, quarantined",
    )
    outputs = {name: path for report in reports.values() for name, path in report["outputs"].items()}
    lines = [f"- **{name}**: `{value}`" for name, value in outputs.items()]
    create_markdown_artifact("\n".join(["# Results", "", *lines]), key=f"{key}-results")


def show_verdict(recipe: Recipe, outputs: Mapping[str, str]) -> None:
    """Puts what was decided, the history of the name, and champion beside challenger on the page."""
    key = artifact_key(recipe.name)
    history = Registry(recipe.storage.registry, recipe.name).history()
    rows = [
        {
            "version": version.number,
            "decision": version.verdict.decision,
            "champion": "now" if history.champion == version else "",
            "loss": version.verdict.loss,
            "rival": version.verdict.rival_loss,
            "dataset": version.verdict.snapshot[:12],
            "judged": version.at,
        }
        for version in reversed(history.versions[-SHOWN_ROWS:])
    ]
    create_table_artifact(rows, key=f"{key}-registry", description=outputs["verdict"])
    _show_grid(key, outputs)


def show_sweep(recipe: Recipe, losses: Mapping[str, float | None], sheet: Path | None) -> None:
    """Puts the runs of a sweep on the page, the best first, and their sheet."""
    key = artifact_key(recipe.name)
    ordered = sorted(losses.items(), key=lambda entry: (entry[1] is None, entry[1]))
    rows = [{"run": name, "hold-out loss": loss} for name, loss in ordered]
    create_table_artifact(rows, key=f"{key}-sweep", description="Runs of the sweep, the best first")
    if sheet:
        _show_image(thumbnail(sheet), sheet, f"{key}-sweep-grid", "Sweep")


def artifact_key(name: str) -> str:
    """A recipe's name in the letters that Prefect allows in keys."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def thumbnail(path: Path) -> str:
    """A data URI of an image, small enough for a database row."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _show_dataset(key: str, snapshot: Snapshot) -> None:
    rows = [
        {
            "bucket": f"{row.width} x {row.height} px",
            "images": row.images,
            "held out": row.held_out,
            "seen an epoch": row.seen_an_epoch,
            "mean crop loss": f"{row.mean_crop_loss:.1%}",
            "worst": f"{row.worst_crop_loss:.1%}",
            "enlarged": row.enlarged,
        }
        for row in bucket_rows(snapshot.samples)
    ]
    about = f"Dataset {snapshot.id[:12]}: {len(snapshot.train)} to train, {len(snapshot.holdout)} held out"
    create_table_artifact(rows, key=f"{key}-buckets", description=about)
    if snapshot.quarantined:
        left_out = [{"file": entry.source, "why": entry.reason} for entry in snapshot.quarantined]
        create_table_artifact(
            left_out[:SHOWN_ROWS],
            key=f"{key}-quarantine",
            description=f"{len(left_out)} files left out; the first {min(SHOWN_ROWS, len(left_out))}",
        )


def _show_cache(key: str, reports: Reports) -> None:
    rows = [
        {
            "part": name.removeprefix("precompute-"),
            "hits": report["reused"],
            "misses": report["done"],
            "quarantined": report["quarantined"],
            "written": human_bytes(report["bytes_written"]),
            "seconds": round(report["seconds"], 1),
        }
        for name, report in reports.items()
    ]
    create_table_artifact(rows, key=f"{key}-cache", description="Latents and text: found in the store, made")


def _show_training(key: str, outputs: Mapping[str, str]) -> None:
    lora = Path(outputs["lora"])
    steps, losses = _metrics(lora.parents[1] / "metrics.jsonl")
    if losses:
        about = f"Training loss, {losses[-1]:.5g} at step {steps[-1]}"
        _show_image(loss_curve(steps, losses), lora.parents[1] / "metrics.jsonl", f"{key}-loss", about)
    with safe_open(lora, "numpy") as file:
        metadata = file.metadata() or {}
    told = "\n".join(f"| {name} | `{_short(value)}` |" for name, value in sorted(metadata.items()))
    create_markdown_artifact(
        f"# LoRA\n\n`{lora}`, {human_bytes(lora.stat().st_size)}\n\n| | made of |\n|---|---|\n{told}",
        key=f"{key}-lora",
        description="The LoRA and its provenance, as its metadata says it",
    )


def _metrics(path: Path) -> tuple[list[int], list[float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def _short(value: str) -> str:
    """A value that fits a column of the page, which is narrow."""
    shown = value if len(value) <= CELL_LENGTH else value[: CELL_LENGTH - 3] + "..."
    return shown.replace("|", "\\|").replace("\n", " ")


def _show_grid(key: str, outputs: Mapping[str, str]) -> None:
    for name, path in outputs.items():
        if Path(path).suffix in {".png", ".webp", ".jpg"}:
            _show_image(thumbnail(Path(path)), Path(path), f"{key}-{artifact_key(name)}", name.capitalize())


def _show_image(uri: str, whole: Path, key: str, about: str) -> None:
    """An image on the page, and the path of the file that has all of it."""
    create_markdown_artifact(f"![{about}]({uri})\n\n`{whole.absolute()}`", key=key, description=about)


def _stage_row(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": name,
        "done": report["done"],
        "reused": report["reused"],
        "quarantined": report["quarantined"],
        "seconds": round(report["seconds"], 1),
        "written": human_bytes(report["bytes_written"]),
    }
