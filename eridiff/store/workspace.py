"""Where everything lies below the two folders that a recipe names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eridiff.store.paths import AnyPath


@dataclass(frozen=True)
class Workspace:
    """The folders of the stages.

    Attributes:
        data: what recipes share: image shards, snapshots, latents and text embeddings.
        runs: a folder for each run name, with its trainings.
        cache: where this machine keeps copies of data that lies elsewhere.
    """

    data: AnyPath
    runs: Path
    cache: Path = Path("cache")

    @property
    def images(self) -> AnyPath:
        """Image shards (webdataset tars), named by digest."""
        return self.data / "images"

    @property
    def datasets(self) -> AnyPath:
        """A folder for each dataset key, with its scans and snapshots."""
        return self.data / "datasets"

    @property
    def latents(self) -> AnyPath:
        """A tensor store for each latent space."""
        return self.data / "latents"

    @property
    def text(self) -> AnyPath:
        """A tensor store for each text space."""
        return self.data / "text"

    @property
    def own(self) -> Path:
        """Where that lies which only this machine can use: with the data, or in the cache."""
        return self.data if isinstance(self.data, Path) else self.cache

    @property
    def digests(self) -> Path:
        """The file that remembers digests of large files."""
        return self.own / "digests.json"

    def run_root(self, name: str) -> Path:
        """The folder of all runs of that name."""
        return self.runs / name
