from __future__ import annotations

from collections.abc import Callable

import pytest

from eridiff.evaluation import lettering
from eridiff.evaluation.lettering import BUNDLED, ELLIPSIS, fit, font, spelled, text_width, wrap

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


@pytest.fixture
def faces(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs faces of the system, each with its letters beside ASCII, and no others."""

    def install(**letters: str) -> None:
        monkeypatch.setattr(lettering, "FALLBACK_FACES", tuple(letters))
        monkeypatch.setattr(lettering, "_has", lambda name, c: c.isascii() or c in letters.get(name, ""))
        monkeypatch.setattr(lettering, "_face", lambda name, size_px: (name, size_px))

    return install


def test_accents_and_signs_get_letters_that_the_bundled_face_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lettering, "FALLBACK_FACES", ())
    assert spelled("café, 128 \u00d7 128 \u2013 ünïcode") == "cafe, 128 x 128 - unicode"
    assert font(20, spelled("café 128 \u00d7 128")).getname() == ("Aileron", "Regular")


@pytest.mark.parametrize("text", ["Bär", "Ba\u0308r"])
def test_accents_stay_where_a_face_has_them(faces: Callable[..., None], text: str) -> None:
    faces(greek="αβγ", latin="äöü")
    assert spelled(text) == "Bär"
    assert font(20, "Bär") == ("latin", 20)
    assert font(20, "Bar") == (BUNDLED, 20)


def test_only_what_the_face_with_most_letters_lacks_is_respelled(faces: Callable[..., None]) -> None:
    faces(latin="äöü", more="äřš", most="äřαβγ")
    assert spelled("äřšü") == "äřšu"
    assert font(20, spelled("äřšü")) == ("more", 20)
    assert spelled("šä αβ řů") == "sä αβ řu"
    assert font(20, "šä αβ řů") == ("most", 20)


def test_signs_do_not_change_the_face(faces: Callable[..., None]) -> None:
    faces(signs="\u00d7\u2013")
    assert spelled("128 \u00d7 128 \u2013 a") == "128 x 128 - a"


def test_other_scripts_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FALLBACK_FACES", ())
    assert spelled("маяк 灯台") == "маяк 灯台"


def test_a_face_of_the_system_writes_its_accents() -> None:
    if lettering._face("DejaVuSans.ttf", 20) is None:
        pytest.skip("this system has no DejaVu Sans")
    assert spelled("Bär, café, дом") == "Bär, café, дом"
    assert font(20, "Bär, дом").getname()[0] != "Aileron"
