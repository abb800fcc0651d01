from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eridiff.demo import corpus
from eridiff.demo.corpus import draw_corpus
from eridiff.demo.drawing import draw
from eridiff.demo.scenes import random_scene


def test_scenes_are_kept_in_the_order_of_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_CHUNK", 3)
    drawn = draw_corpus(tmp_path / "plain", 7, "plain", first_seed=40, processes=2)
    scenes = [random_scene(seed) for seed in range(40, 47)]
    assert drawn.captions() == [scene.caption for scene in scenes]
    pixels = drawn.pixels()
    assert (pixels.shape, pixels.dtype) == ((7, 128, 128, 3), np.uint8)
    for row, scene in zip(pixels, scenes, strict=True):
        assert np.array_equal(row, np.asarray(draw(scene, "plain")))
