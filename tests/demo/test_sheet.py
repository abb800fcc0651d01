from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from eridiff import families
from eridiff.demo import sheet
from eridiff.demo.architecture import save_random_base
from eridiff.demo.pretrain import OPTIONS
from eridiff.demo.sheet import base_of, sample_sheet


@pytest.mark.parametrize("name", families.names())
def test_a_sheet_shows_every_prompt_with_every_seed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "PROMPTS", ("a red circle", "a blue star over the sea"))
    monkeypatch.setattr(sheet, "SEEDS", (1, 2, 3))
    monkeypatch.setattr(sheet, "STEPS", 2)
    save_random_base(name, tmp_path / "base")
    family = families.get(name, OPTIONS[name])
    assert base_of(family, tmp_path / "base").layout.family == name
    page = sample_sheet(family, tmp_path / "base", tmp_path / "tiles", torch.device("cpu"))
    tiles = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "tiles").glob("*.png"))]
    assert [tile.size for tile in tiles] == [(128, 128)] * 6
    assert len({tile.tobytes() for tile in tiles}) == 6
    assert page.width > 3 * 128
    assert page.height > 2 * 128
