from __future__ import annotations

import hashlib

import pytest

from eridiff.images.buckets import bucket_sides
from eridiff.images.captions import UnusableCaption
from eridiff.images.discover import CaptionedImage
from eridiff.images.formats import UnusableImage
from eridiff.images.judge import Rules, judge, split_of
from eridiff.images.scan import ScanCache, examine_caption, examine_image
from eridiff.images.sources import whole_file

RULES = {
    "buckets": bucket_sides(128, 64),
    "max_side_px": 1000,
    "caption_lines": False,
    "default_caption": None,
    "trigger_word": None,
    "holdout": 0.0,
}


@pytest.fixture
def verdict(tmp_path, write, photo):
    def judge_it(image=None, caption=b"a caption", **rules):
        cache, sources = ScanCache(), []
        for name, data, examine in (
            ("a.jpg", photo() if image is None else image, examine_image),
            ("a.txt", caption, examine_caption),
        ):
            if data is None:
                sources.append(None)
                continue
            path = write(tmp_path / name, data)
            sources.append(whole_file(name, str(path), path.stat()))
            cache.put(sources[-1], examine(sources[-1]))
        return judge(CaptionedImage(*sources), cache, Rules(**(RULES | rules)))

    return judge_it


def test_a_sound_image_is_accepted(verdict, photo):
    accepted = verdict(photo(width=200, height=200))
    assert accepted.content == hashlib.sha256(photo(width=200, height=200)).hexdigest()
    assert accepted.captions == ("a caption",)
    assert accepted.stem == f"{accepted.content[:20]}-128x128"
    assert accepted.split == "train"
    assert accepted.packed.caption == "a caption"


def test_the_shard_keeps_the_users_words_and_the_sample_the_trigger(verdict):
    accepted = verdict(caption=b"a [trigger] wall\nat night", trigger_word="sks")
    assert accepted.captions == ("a sks wall at night",)
    assert accepted.text == "a [trigger] wall\nat night"
    assert verdict(caption=b"a\nb\n\na", caption_lines=True).captions == ("a", "b")


@pytest.mark.parametrize("caption", [None, b"", b" \n"])
def test_a_missing_caption_is_the_default_or_a_reason(verdict, caption):
    assert verdict(caption=caption, default_caption="a thing").captions == ("a thing",)
    assert verdict(caption=caption, default_caption="[trigger]", trigger_word="sks").captions == ("sks",)
    with pytest.raises(UnusableCaption) as raised:
        verdict(caption=caption)
    assert "default_caption" in raised.value.reason


def test_a_bad_caption_is_not_replaced_by_the_default(verdict):
    with pytest.raises(UnusableCaption) as raised:
        verdict(caption=b"\xff", default_caption="a thing")
    assert raised.value.reason.startswith("its caption a.txt: not UTF-8")


def test_long_sides_and_bad_files_are_reasons(verdict, photo):
    with pytest.raises(UnusableImage) as raised:
        verdict(photo(width=1001, height=20))
    assert raised.value.reason == "1001 x 20 px is longer than ingest.max_side_px, 1000"
    with pytest.raises(UnusableImage) as raised:
        verdict(b"")
    assert raised.value.reason == "the file is empty"


def test_hopelessly_narrow_images_are_left_out(verdict, photo):
    assert verdict(photo(width=390, height=10)).placement.bucket_width == 256
    with pytest.raises(UnusableImage) as raised:
        verdict(photo(width=500, height=10))
    assert raised.value.reason == "500 x 10 px is too narrow: 92% of it would be cropped away"


def test_the_split_is_a_pure_function_of_the_content():
    contents = [hashlib.sha256(bytes([a, b])).hexdigest() for a in range(16) for b in range(250)]
    held = {content for content in contents if split_of(content, 0.1) == "holdout"}
    assert 300 < len(held) < 500
    assert all(split_of(content, 0.2) == "holdout" for content in held)
    assert {split_of(content, 0.0) for content in contents} == {"train"}
    assert {split_of(content, 1.0) for content in contents} == {"holdout"}
