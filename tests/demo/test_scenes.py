from __future__ import annotations

import re

from eridiff.demo.drawing import draw
from eridiff.demo.scenes import held_out, random_scene
from eridiff.demo.vocabulary import COLORS, SHAPES, TRIGGER, words


def test_a_seed_decides_scene_caption_and_pixels() -> None:
    assert random_scene(7) == random_scene(7) != random_scene(8)
    for style in ("plain", "neon"):
        assert draw(random_scene(7), style).tobytes() == draw(random_scene(7), style).tobytes()
        assert draw(random_scene(7), style).size == (128, 128)


def test_captions_use_known_words_and_name_every_thing() -> None:
    for seed in range(300):
        scene = random_scene(seed)
        assert set(re.findall(r"\w+", scene.caption)) <= set(words())
        assert TRIGGER not in scene.caption
        assert all(thing.phrase in scene.caption for thing in scene.things)


def test_things_stay_inside_the_picture() -> None:
    for seed in range(300):
        for thing in random_scene(seed).things:
            assert thing.radius_px * 0.8 < thing.x_px < 128 - thing.radius_px * 0.8
            assert thing.radius_px * 0.8 < thing.y_px < 128 - thing.radius_px * 0.8


def test_held_out_pairs_are_two_a_colour_and_absent_where_asked() -> None:
    assert [sum(held_out(color, shape) for shape in SHAPES) for color in COLORS] == [2] * len(COLORS)
    for seed in range(300):
        assert not any(held_out(*pair) for pair in random_scene(seed, only_seen=True).pairs)
