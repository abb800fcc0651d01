from __future__ import annotations

import pytest

from eridiff.images.captions import UnusableCaption, captions_in, decode_text, with_trigger


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a red circle", "a red circle"),
        ("ein großer Kreis".encode(), "ein großer Kreis"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree"),
        (b"", ""),
    ],
)
def test_utf8_is_read(data, text):
    assert decode_text(data) == text


@pytest.mark.parametrize(
    "data", ["Größe".encode("latin-1"), "text".encode("utf-16"), "text".encode("utf-16-le")]
)
def test_other_encodings_say_so(data):
    with pytest.raises(UnusableCaption) as raised:
        decode_text(data)
    assert "UTF-8" in raised.value.reason


def test_lines_are_one_caption_or_several():
    text = "  a circle\n\n a star \na circle\n"
    assert captions_in(text, one_a_line=False) == ("a circle a star a circle",)
    assert captions_in(text, one_a_line=True) == ("a circle", "a star")
    assert captions_in(" \n\n", one_a_line=False) == captions_in("\n", one_a_line=True) == ()


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a photo of [trigger] on a wall", "a photo of sks on a wall"),
        ("a photo of a wall", "sks, a photo of a wall"),
        ("SKS on a wall", "SKS on a wall"),
        ("risks on a wall", "sks, risks on a wall"),
        ("[trigger]", "sks"),
    ],
)
def test_the_trigger_word_stands_in_every_caption(caption, wanted):
    assert with_trigger(caption, "sks") == wanted


def test_a_placeholder_without_a_word_is_no_caption():
    assert with_trigger("a wall", None) == with_trigger("a wall", "") == "a wall"
    with pytest.raises(UnusableCaption):
        with_trigger("a [trigger]", None)
