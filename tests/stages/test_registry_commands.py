"""`eridiff registry`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eridiff.registry import Registry, Verdict
from stages import cli
from tests import lorafiles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A registry with one version of `cats`."""
    source = tmp_path / "source.safetensors"
    lorafiles.write_text(source, "one")
    verdict = Verdict("promoted", "", "", "run", "snapshot", str(source), 0.5, 0.6)
    served = tmp_path / "a folder [v2] of a long name" / "in which [/] champions are served"
    Registry(tmp_path / "registry", "cats").add(verdict, keep=1, serve=served)
    return tmp_path / "registry"


def ended(*arguments: object) -> object:
    with pytest.raises(SystemExit) as done:
        cli.main(["registry", *map(str, arguments)])
    return done.value.code


def test_a_name_is_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("show", "cats", "--registry", root, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["versions"]) == 1


@pytest.mark.parametrize("arguments", [("show", "cat"), ("promote", "cat", 1), ("rollback", "cat")])
def test_a_name_that_is_not_there_is_told(
    root: Path, arguments: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(root.iterdir())
    assert ended(*arguments, "--registry", root) == 3
    told = capsys.readouterr().err
    assert "found:  cat\n" in told
    assert "wanted: cats\n" in told
    assert sorted(root.iterdir()) == before


def test_the_served_folder_is_listed_whole(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("list", "--registry", root) == 0
    rows = (line.split("\u2502") for line in capsys.readouterr().out.splitlines())
    listed = "".join("".join(cells[6].split()) for cells in rows if len(cells) > 6)
    assert listed == "".join(str(Registry(root, "cats").history().served).split())
