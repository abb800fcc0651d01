from __future__ import annotations

import pytest
from PIL import Image

from eridiff.demo.drawing import draw
from eridiff.demo.scenes import random_scene
from eridiff.demo.style import score


def test_plain_scores_near_zero_and_neon_near_one() -> None:
    scenes = [random_scene(seed) for seed in range(40)]
    assert max(score(draw(scene, "plain")) for scene in scenes) < 0.05
    assert min(score(draw(scene, "neon")) for scene in scenes) > 0.95


@pytest.mark.parametrize("color", ["black", "white", "#402030"])
def test_an_empty_picture_scores_nothing(color: str) -> None:
    assert score(Image.new("RGB", (96, 160), color)) == 0
