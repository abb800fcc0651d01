from __future__ import annotations

import pytest

from eridiff.evaluation.lettering import ELLIPSIS, fit, font, spelled, text_width, wrap

LONG = "a photograph of an old lighthouse keeper mending his nets by lamplight, weathered hands"


def test_wrapped_lines_fit_and_keep_every_word() -> None:
    lines = wrap(LONG, 20, 180, max_lines=99)
    assert len(lines) > 3
    assert all(text_width(line, 20) <= 180 for line in lines)
    assert " ".join(lines) == LONG


def test_words_without_room_end_in_an_ellipsis() -> None:
    lines = wrap(LONG, 20, 180, max_lines=2)
    assert len(lines) == 2
    assert lines[-1].endswith(ELLIPSIS)
    assert text_width(lines[-1], 20) <= 180


def test_a_word_wider_than_a_line_is_broken() -> None:
    lines = wrap("x" * 80, 20, 100, max_lines=99)
    assert "".join(lines) == "x" * 80
    assert all(text_width(line, 20) <= 100 for line in lines)


@pytest.mark.parametrize("text", ["", "   \n "])
def test_nothing_wraps_to_nothing(text: str) -> None:
    assert wrap(text, 20, 100, max_lines=3) == []


def test_fit_shortens_only_what_is_too_long() -> None:
    assert fit("short", 20, 400) == "short"
    shortened = fit(LONG, 20, 100)
    assert shortened.endswith(ELLIPSIS)
    assert text_width(shortened, 20) <= 100


def test_accents_and_signs_get_letters_that_the_bundled_face_has() -> None:
    assert spelled("café, 128 \u00d7 128 \u2013 ünïcode") == "cafe, 128 x 128 - unicode"
    assert font(20, spelled("café 128 \u00d7 128")).getname() == ("Aileron", "Regular")


def test_other_scripts_are_left_as_they_are() -> None:
    assert spelled("маяк 灯台") == "маяк 灯台"
