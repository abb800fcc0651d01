from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from eridiff.images import scan as scanning
from eridiff.images.scan import ScanCache, examine_caption, examine_image, scan
from eridiff.images.sources import whole_file


def source(path):
    return whole_file(str(path), str(path), path.stat())


def saved(cache, sources, path):
    cache.save(path, sources)
    return ScanCache([path])


def test_an_image_is_read_to_digest_and_size(tmp_path, write, photo):
    data = photo(width=64, height=48)
    found = examine_image(source(write(tmp_path / "a.jpg", data)))
    assert found.content == hashlib.sha256(data).hexdigest()
    assert (found.extension, found.width, found.height, found.problem) == ("jpg", 64, 48, None)


def test_a_bad_file_has_a_reason_and_a_digest(tmp_path, write):
    assert examine_image(source(write(tmp_path / "a.jpg", b""))).problem == "the file is empty"
    caption = examine_caption(source(write(tmp_path / "a.txt", b"\xff\xfe")))
    assert "UTF-8" in str(caption.problem)
    assert caption.content == hashlib.sha256(b"\xff\xfe").hexdigest()


def test_an_unreadable_file_is_not_remembered(tmp_path, write, photo, monkeypatch):
    path = write(tmp_path / "a.jpg", photo())

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    found = examine_image(source(path))
    assert found.problem == "cannot be read: Permission denied"
    cache = ScanCache()
    cache.put(source(path), found)
    assert cache[source(path)] == found
    assert cache.get(source(path)) is None


def test_what_is_saved_is_known_again(tmp_path, write, photo):
    paths = [write(tmp_path / f"{index}.jpg", photo(index)) for index in range(70)]
    paths.append(write(tmp_path / "bad.jpg", b"bad"))
    sources = [source(path) for path in paths]
    work = [(found, examine_image) for found in sources]
    work.append((source(write(tmp_path / "0.txt", "Größe".encode())), examine_caption))
    results = dict(scan(work))
    assert list(results) == [found for found, _ in work]
    cache = ScanCache()
    for found, result in results.items():
        cache.put(found, result)
    again = saved(cache, results, tmp_path / "scan.parquet")
    assert {found: again.get(found) for found in results} == results
    assert again.get(work[-1][0]).text == "Größe"


def test_only_present_files_are_saved(tmp_path, write, photo):
    kept, gone = (source(write(tmp_path / name, photo())) for name in ("a.jpg", "b.jpg"))
    cache = ScanCache()
    for found in (kept, gone):
        cache.put(found, examine_image(found))
    again = saved(cache, [kept], tmp_path / "scan.parquet")
    assert again.get(kept) is not None
    assert again.get(gone) is None


@pytest.mark.parametrize("change", ["bytes", "time", "replaced"])
def test_a_changed_file_is_unknown(tmp_path, write, photo, change):
    path = write(tmp_path / "a.jpg", photo())
    cache = ScanCache()
    cache.put(source(path), examine_image(source(path)))
    status = path.stat()
    if change == "bytes":
        write(path, photo() + b"!")
    elif change == "time":
        os.utime(path, ns=(status.st_mtime_ns + 1, status.st_mtime_ns + 1))
    else:
        write(tmp_path / "b.jpg", photo()).replace(path)
    assert cache.get(source(path)) is None


@pytest.mark.parametrize(
    ("age_ns", "mtime_ns", "lasting"),
    [(10**9, 123_456_789, True), (10**7, 123_456_789, False), (10**9, 0, False), (3 * 10**9, 0, True)],
)
def test_a_file_that_may_change_unseen_is_not_remembered(
    tmp_path, write, photo, monkeypatch, age_ns, mtime_ns, lasting
):
    path = write(tmp_path / "a.jpg", photo())
    written_ns = 1_700_000_000 * 10**9 + mtime_ns
    os.utime(path, ns=(written_ns, written_ns))
    monkeypatch.setattr(time, "time_ns", lambda: written_ns + age_ns)
    assert examine_image(source(path)).lasting is lasting


def test_a_damaged_or_older_cache_counts_for_nothing(tmp_path, write, photo, monkeypatch):
    found = source(write(tmp_path / "a.jpg", photo()))
    cache = ScanCache()
    cache.put(found, examine_image(found))
    path = tmp_path / "scan.parquet"
    cache.save(path, [found])
    assert ScanCache([tmp_path / "none.parquet", path]).get(found) is not None
    older = scanning._SCHEMA.with_metadata({scanning._VERSION_KEY: "0"})
    monkeypatch.setattr(scanning, "_SCHEMA", older)
    assert ScanCache([path]).get(found) is None
    path.write_bytes(b"PAR1 torn")
    assert ScanCache([path]).get(found) is None


def test_names_that_are_not_utf8_can_be_kept(tmp_path, photo, write):
    raw = os.fsencode(tmp_path) + b"/gr\xfc\xdfe.jpg"
    path = tmp_path / "a.jpg"
    write(path, photo())
    path.rename(os.fsdecode(raw))
    found = whole_file(os.fsdecode(raw), os.fsdecode(raw), Path(os.fsdecode(raw)).stat())
    cache = ScanCache()
    cache.put(found, examine_image(found))
    assert saved(cache, [found], tmp_path / "scan.parquet").get(found) is not None
