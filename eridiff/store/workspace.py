"""Where everything lies below the two folders that a recipe names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folders of the stages.

    Attributes:
        data: what recipes share: image shards, snapshots, latents and text embeddings.
        runs: a folder for each run name, with its trainings.
    """

    data: Path
    runs: Path

    @property
    def images(self) -> Path:
        """Image shards (webdataset tars), named by digest."""
        return self.data / "images"

    @property
    def datasets(self) -> Path:
        """A folder for each dataset key, with its scans and snapshots."""
        return self.data / "datasets"

    @property
    def latents(self) -> Path:
        """A tensor store for each latent space."""
        return self.data / "latents"

    @property
    def text(self) -> Path:
        """A tensor store for each text space."""
        return self.data / "text"

    @property
    def digests(self) -> Path:
        """The file that remembers digests of large files."""
        return self.data / "digests.json"

    def run_root(self, name: str) -> Path:
        """The folder of all runs of that name."""
        return self.runs / name
