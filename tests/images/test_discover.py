from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from eridiff.errors import DataError
from eridiff.images.discover import discover
from eridiff.images.sources import read_source

ENDINGS = ("txt", "caption")


def names(found):
    return {
        Path(image.image.name).name: image.caption and Path(image.caption.name).name for image in found.images
    }


def test_nested_folders_and_all_endings(tmp_path, write):
    for index, ending in enumerate(["jpg", "JPEG", "png", "webp", "avif", "bmp", "tif", "TIFF"]):
        write(tmp_path / "/".join("a" * (index % 3)) / f"{index}.{ending}", b"x")
    write(tmp_path / "notes.md", b"x")
    write(tmp_path / ".hidden.jpg", b"x")
    write(tmp_path / ".cache" / "thumb.jpg", b"x")
    found = discover(tmp_path, caption_endings=ENDINGS)
    assert len(found.images) == 8
    assert found.other_files == 1
    assert not found.unreadable


def test_captions_lie_beside_and_the_first_ending_wins(tmp_path, write):
    for name in [
        "a.jpg",
        "a.txt",
        "b.jpg",
        "b.caption",
        "c.jpg",
        "c.caption",
        "c.txt",
        "d.jpg",
        "e.TXT",
        "e.jpg",
    ]:
        write(tmp_path / name, b"x")
    write(tmp_path / "lone.txt", b"x")
    write(tmp_path / "below" / "d.txt", b"x")
    found = discover(tmp_path, caption_endings=ENDINGS)
    assert names(found) == {
        "a.jpg": "a.txt",
        "b.jpg": "b.caption",
        "c.jpg": "c.txt",
        "d.jpg": None,
        "e.jpg": "e.TXT",
    }
    assert found.lone_captions == 2
    only = discover(tmp_path, caption_endings=(".caption",))
    assert names(only)["c.jpg"] == "c.caption"
    assert names(only)["a.jpg"] is None


def test_images_of_one_stem_share_a_caption(tmp_path, write):
    for name in ["a.jpg", "a.png", "a.txt"]:
        write(tmp_path / name, b"x")
    assert names(discover(tmp_path, caption_endings=ENDINGS)) == {"a.jpg": "a.txt", "a.png": "a.txt"}


def test_names_are_as_the_user_knows_them(tmp_path, write, monkeypatch):
    write(tmp_path / "photos" / "in" / "a.jpg", b"x")
    monkeypatch.chdir(tmp_path)
    (image,) = discover(Path("photos"), caption_endings=ENDINGS).images
    assert image.image.name == "photos/in/a.jpg"
    assert image.image.path == str(tmp_path / "photos" / "in" / "a.jpg")


def test_links_are_followed_but_never_in_circles(tmp_path, write):
    write(tmp_path / "elsewhere" / "b.jpg", b"x")
    write(tmp_path / "set" / "a.jpg", b"x")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "set" / "below").mkdir()
    (tmp_path / "set" / "below" / "circle").symlink_to(tmp_path / "set")
    found = discover(tmp_path / "set", caption_endings=ENDINGS)
    assert set(names(found)) == {"a.jpg", "b.jpg", "c.jpg"}
    ((name, reason),) = found.unreadable
    assert name.endswith("below/circle")
    assert "link" in reason


def test_what_cannot_be_opened_is_named(tmp_path, write):
    write(tmp_path / "a.jpg", b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = discover(tmp_path, caption_endings=ENDINGS)
    reasons = {Path(name).name: reason for name, reason in found.unreadable}
    assert set(names(found)) == {"a.jpg"}
    assert set(reasons) == {"gone.jpg", "self.png", "pipe.jpg"}
    assert reasons["pipe.jpg"] == "not a regular file"


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, write, monkeypatch):
    write(tmp_path / "a.jpg", b"x")
    write(tmp_path / "secret" / "b.jpg", b"x")
    listing = os.scandir

    def scandir(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = discover(tmp_path, caption_endings=ENDINGS)
    assert set(names(found)) == {"a.jpg"}
    assert found.unreadable == [(f"{tmp_path}/secret", "Permission denied")]


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_no_dataset_is_an_error(tmp_path, kind):
    root = tmp_path / kind
    if kind == "empty":
        root.mkdir()
    if kind == "file":
        root.write_text("x")
    with pytest.raises(DataError) as raised:
        discover(root, caption_endings=ENDINGS)
    assert str(root) in str(raised.value)


def test_a_tar_is_a_dataset(tmp_path):
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in {"x/1.jpg": b"one", "x/1.txt": b"a caption", "2.png": b"two"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = discover(path, caption_endings=ENDINGS)
    first, second = sorted(found.images, key=lambda image: image.image.name, reverse=True)
    assert first.image.name == f"{path}/x/1.jpg"
    assert read_source(first.image) == b"one"
    assert first.caption is not None
    assert read_source(first.caption) == b"a caption"
    assert second.caption is None


def test_a_broken_tar_is_an_error(tmp_path):
    (tmp_path / "set.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match="cannot be read"):
        discover(tmp_path / "set.tar", caption_endings=ENDINGS)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, write):
    path = write(tmp_path / "a.jpg", b"before")
    (image,) = discover(tmp_path, caption_endings=ENDINGS).images
    path.write_bytes(b"after it")
    with pytest.raises(DataError, match="changed"):
        read_source(image.image)
