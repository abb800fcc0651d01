"""Section of where artifacts lie: on disk, or but for runs at a URL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from eridiff.recipe.fields import Section

Url = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://")]
_SECRETS = re.compile(r"secret|passw|token|credential|access_key|account_key|connection_string|^key$")


def _on_disk(value: object) -> object:
    """Refuses a URL where a folder is wanted."""
    if isinstance(value, str) and "://" in value:
        raise ValueError("a folder on disk; only storage.data can be a URL")
    return value


def _without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    """Refuses what every run would keep a copy of."""
    for name, value in options.items():
        if _SECRETS.search(name):
            raise PydanticCustomError(
                "secret",
                "no {name}: runs keep a copy of their recipe; credentials are read from the environment",
                {"name": name},
            )
        if isinstance(value, dict):
            _without_secrets(value)
    return options


LocalPath = Annotated[Path, BeforeValidator(_on_disk)]


class Storage(Section):
    """Where artifacts lie."""

    data: Annotated[Url | Path, Field(union_mode="left_to_right")] = Path("data")
    """Shards, snapshots, latents and embeddings, shared by all recipes: a folder, or a URL of any storage
    that fsspec knows, e.g. `s3://bucket/prefix`."""
    runs: LocalPath = Path("runs")
    registry: LocalPath = Path("registry")
    """Which LoRA of each name is the champion, and the files of the last ones."""
    cache: LocalPath = Path("cache")
    """Folder on this machine for copies of `data` that lies at a URL."""
    cache_gb: Annotated[float, Field(gt=0)] = 50.0
    """What the copies may take; the least recently used go first."""
    options: Annotated[dict[str, Any], AfterValidator(_without_secrets)] = Field(default_factory=dict)
    """Arguments of fsspec's file system for a URL, e.g. `{endpoint_url: "http://minio:9000"}`. Credentials
    come from the environment (`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, ...), never from a recipe."""
