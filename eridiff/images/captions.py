"""Caption files to captions."""

from __future__ import annotations

import codecs
import re

from eridiff.errors import DataError

TRIGGER = "[trigger]"
"""Stands for the trigger word in captions and prompts."""


class UnusableCaption(DataError):  # noqa: N818 - a verdict on a file; the run goes on without it
    """A caption that cannot be trained on.

    Args:
        reason: why, for the user.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("A caption cannot be used.", found=reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnusableCaption], tuple[str]]:
        return type(self), (self.reason,)


def decode_text(data: bytes) -> str:
    r"""The text of a caption file, with `\n` between lines; a byte order mark is dropped.

    Raises:
        UnusableCaption: it is not UTF-8.
    """
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnusableCaption(
            f"not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UnusableCaption("it holds zero bytes: it may be UTF-16; save it as UTF-8")
    return "\n".join(text.splitlines())


def captions_in(text: str, *, one_a_line: bool) -> tuple[str, ...]:
    """The captions in a caption file's text: one of all its lines, or one for each line that is not empty."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if one_a_line:
        return tuple(dict.fromkeys(lines))
    return (" ".join(lines),) if lines else ()


def with_trigger(caption: str, word: str | None) -> str:
    """The caption with `[trigger]` replaced by the trigger word, or the word put in front where it is absent.

    Raises:
        UnusableCaption: the caption says `[trigger]` and there is no trigger word.
    """
    if not word:
        if TRIGGER in caption:
            raise UnusableCaption(f"it says {TRIGGER}, but the recipe has no trigger_word")
        return caption
    if TRIGGER in caption:
        return caption.replace(TRIGGER, word)
    present = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE)
    return caption if present else f"{word}, {caption}"
