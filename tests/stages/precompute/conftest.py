"""Six images with captions beside a tiny base."""

from __future__ import annotations

from pathlib import Path

import pytest

from eridiff.demo.architecture import save_random_base
from tests.stages.precompute.folder import NUM_IMAGES, draw


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "base"
    save_random_base("flux", folder)
    return folder


@pytest.fixture
def root(tmp_path: Path, tiny_base: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        draw(folder, number)
        (folder / f"{number}.txt").write_text(f"caption {number}")
    (tmp_path / "base").symlink_to(tiny_base)
    return tmp_path
