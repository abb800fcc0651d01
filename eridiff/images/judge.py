"""What becomes of each image found: captions and a place in a bucket, or a reason to leave it out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from eridiff.images.buckets import Placement, crop_loss, place
from eridiff.images.captions import UnusableCaption, captions_in, with_trigger
from eridiff.images.discover import CaptionedImage
from eridiff.images.formats import UnusableImage
from eridiff.images.scan import ScanCache
from eridiff.images.shards import ShardImage
from eridiff.images.sources import Source

Split = Literal["train", "holdout"]

MAX_CROP_LOSS = 0.9
"""Images that would lose more than this share of their area are left out: what remains is not the image."""


@dataclass(frozen=True)
class Rules:
    """What a recipe asks of a dataset.

    Attributes:
        buckets: (width, height) px that may be used.
        max_side_px: longest side of an image that is accepted.
        caption_lines: whether each line of a caption file is a caption of its own.
        default_caption: for images without a caption; None leaves them out.
        trigger_word: stands in every caption.
        holdout: share of images kept out of training.
    """

    buckets: tuple[tuple[int, int], ...]
    max_side_px: int
    caption_lines: bool
    default_caption: str | None
    trigger_word: str | None
    holdout: float


@dataclass(frozen=True)
class Accepted:
    """An image to train on.

    Attributes:
        content: sha256 of the file's bytes.
        extension: its format.
        text: the caption file's text, or the default caption.
        captions: what is trained on: `text` as one or several captions, with the trigger word.
        placement: how it fills its bucket.
        split: trained on, or held out.
        source: where it lies.
    """

    content: str
    extension: str
    text: str
    captions: tuple[str, ...]
    placement: Placement
    split: Split
    source: Source

    @property
    def stem(self) -> str:
        """The sample's id but for a number among equal ones: what is in it, whatever it is called."""
        return f"{self.content[:20]}-{self.placement.bucket_width}x{self.placement.bucket_height}"

    @property
    def packed(self) -> ShardImage:
        """How it lies in a shard."""
        return ShardImage(self.content, self.extension, self.text, self.source)


def judge(found: CaptionedImage, known: ScanCache, rules: Rules) -> Accepted:
    """The verdict on one image whose files have been scanned.

    Raises:
        UnusableImage: its file cannot be used.
        UnusableCaption: its caption cannot be used, or it has none.
    """
    scanned = known[found.image]
    if scanned.problem is not None or scanned.extension is None:
        raise UnusableImage(scanned.problem or "not an image")
    longest = max(scanned.width, scanned.height)
    if longest > rules.max_side_px:
        raise UnusableImage(
            f"{scanned.width} x {scanned.height} px is longer than ingest.max_side_px, {rules.max_side_px}"
        )
    placement = place(scanned.width, scanned.height, rules.buckets)
    if crop_loss(placement) > MAX_CROP_LOSS:
        raise UnusableImage(
            f"{scanned.width} x {scanned.height} px is too narrow: "
            f"{crop_loss(placement):.0%} of it would be cropped away"
        )
    text = _text_of(found, known, rules)
    captions = captions_in(text, one_a_line=rules.caption_lines)
    return Accepted(
        content=scanned.content,
        extension=scanned.extension,
        text=text,
        captions=tuple(dict.fromkeys(with_trigger(caption, rules.trigger_word) for caption in captions)),
        placement=placement,
        split=split_of(scanned.content, rules.holdout),
        source=found.image,
    )


def split_of(content: str, holdout: float) -> Split:
    """Which split an image belongs to: a pure function of its bytes, so other images never move it."""
    draw = int.from_bytes(hashlib.sha256(f"holdout/{content}".encode()).digest()[:8], "big") / 2**64
    return "holdout" if draw < holdout else "train"


def _text_of(found: CaptionedImage, known: ScanCache, rules: Rules) -> str:
    if found.caption is not None:
        scanned = known[found.caption]
        if scanned.problem is not None:
            raise UnusableCaption(f"its caption {found.caption.name}: {scanned.problem}")
        if scanned.text and scanned.text.strip():
            return scanned.text
    if rules.default_caption and rules.default_caption.strip():
        return rules.default_caption
    if found.caption is None:
        raise UnusableCaption("it has no caption file, and there is no default_caption")
    raise UnusableCaption(f"its caption {found.caption.name} is empty, and there is no default_caption")
