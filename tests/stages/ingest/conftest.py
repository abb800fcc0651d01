"""A folder of 24 images, its recipe, and what a run reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eridiff.images import scan as scanning
from eridiff.images import shards as packing
from eridiff.recipe import Recipe
from stages import ingest
from tests.stages.ingest.folder import add, make_recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(24):
        add(tmp_path / "images", f"{'below/' if index % 3 else ''}{index:02d}", index, f"thing {index}")
    return tmp_path / "images"


@pytest.fixture
def recipe(tmp_path: Path, images: Path) -> Recipe:
    return make_recipe(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the user's files that are scanned."""
    seen: list[str] = []
    real = scanning.read_source

    def read(source: Any) -> bytes:
        seen.append(Path(source.name).name)
        return real(source)

    monkeypatch.setattr(scanning, "read_source", read)
    return seen


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are written."""
    seen: list[str] = []
    real = ingest.write_shard

    def pack(path: Path, shard: packing.Shard) -> int:
        seen.append(shard.name)
        return real(path, shard)

    monkeypatch.setattr(ingest, "write_shard", pack)
    return seen
