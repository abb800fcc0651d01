from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eridiff.errors import RecipeError
from eridiff.recipe import load
from stages.watch import changes, fingerprint, watch


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def told(looks: Callable[[float], str], *, until_s: float, seen: str = "a") -> list[tuple[float, str]]:
    """What was told, and when, with a look each second and five seconds of quiet asked for."""
    clock = Clock()
    found = changes(
        lambda: looks(clock.now),
        seen,
        quiet_s=5,
        every_s=1,
        stop=lambda: clock.now > until_s,
        clock=clock,
        sleep=clock.sleep,
    )
    return [(clock.now, look) for look in found]


def test_nothing_is_told_of_a_quiet_folder() -> None:
    assert told(lambda _: "a", until_s=100) == []


def test_a_change_is_told_once_it_lay_quiet() -> None:
    assert told(lambda now: "a" if now < 10 else "b", until_s=100) == [(15, "b")]


def test_a_copy_under_way_is_not_told_until_it_ends() -> None:
    assert told(lambda now: f"{min(now, 20):g}", until_s=100) == [(25, "20")]


def test_a_change_that_was_undone_meanwhile_is_none() -> None:
    assert told(lambda now: "b" if 10 <= now < 13 else "a", until_s=100) == []


def test_each_change_is_told() -> None:
    looks = {0: "a", 1: "b", 2: "c"}
    assert told(lambda now: looks[min(int(now // 30), 2)], until_s=200) == [(35, "b"), (65, "c")]


def test_what_changed_while_nobody_watched_is_told_at_the_start() -> None:
    assert told(lambda _: "a", until_s=30, seen="") == [(5, "a")]


def test_a_fingerprint_follows_names_sizes_and_times_but_not_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    first, second = tmp_path / "deep" / "a.png", tmp_path / "b.png"
    seen = [fingerprint([tmp_path])]
    for path in (first, second):
        path.write_bytes(b"1")
        seen.append(fingerprint([tmp_path]))
    assert fingerprint([tmp_path]) == seen[-1]
    os.utime(first, ns=(1, 1))
    seen.append(fingerprint([tmp_path]))
    first.rename(tmp_path / "deep" / "c.png")
    seen.append(fingerprint([tmp_path]))
    second.unlink()
    seen.append(fingerprint([tmp_path]))
    assert all(one != other for one, other in itertools.combinations(seen, 2))


def test_an_archive_is_watched_and_a_loop_of_links_is_not_followed(tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    archive.write_bytes(b"1")
    before = fingerprint([archive])
    archive.write_bytes(b"12")
    assert fingerprint([archive]) != before
    (tmp_path / "up").symlink_to(tmp_path)
    assert fingerprint([tmp_path]) == fingerprint([tmp_path])


def test_a_folder_that_is_gone_is_an_empty_one(tmp_path: Path) -> None:
    assert fingerprint([tmp_path / "absent"]) == fingerprint([tmp_path])


def test_without_a_server_there_is_nobody_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nmodel: {family: sdxl, base: b}\ndatasets: [{folder_path: images}]\n")
    from eridiff import families

    recipe = load(path, option_models=families.option_models())
    with pytest.raises(RecipeError, match="No Prefect server"):
        watch(recipe, path, quiet_s=0, every_s=1)
