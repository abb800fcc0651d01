from __future__ import annotations

from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.store.runs import Run, latest
from eridiff.store.workspace import Workspace


def test_a_run_has_its_places(tmp_path: Path) -> None:
    run = Run(Workspace(tmp_path / "data", tmp_path / "runs").run_root("cat"), "abc")
    assert run.name == "cat"
    assert run.folder == tmp_path / "runs" / "cat" / "abc"
    assert run.lora_file() == run.folder / "lora" / "cat.safetensors"
    assert run.lora_file(250) == run.folder / "lora" / "cat-000250.safetensors"
    assert not (tmp_path / "runs").exists()


def test_the_seal_ends_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "cat", "abc")
    assert not run.sealed
    with pytest.raises(StoreError):
        run.read_seal()
    run.seal({"steps": 10})
    assert run.sealed
    assert run.read_seal() == {"steps": 10}


def test_a_run_is_finished_while_its_lora_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "cat", "abc")
    run.lora.mkdir(parents=True)
    run.lora_file().touch()
    assert not run.finished
    run.seal({})
    assert run.finished
    run.lora_file().unlink()
    assert run.sealed
    assert not run.finished


def test_the_last_numbers_are_those_of_the_last_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "cat", "abc")
    run.folder.mkdir(parents=True)
    run.metrics.touch()
    assert run.last_numbers() == {}
    run.metrics.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    assert run.last_numbers() == {"loss": 0.25}


def test_the_newest_run_is_found_by_name(tmp_path: Path) -> None:
    assert latest(tmp_path / "cat") is None
    for name in ("one", "two"):
        Run(tmp_path / "cat", name).make_latest()
    assert latest(tmp_path / "cat") == Run(tmp_path / "cat", "two")
    (tmp_path / "cat" / "latest.json").write_text("")
    with pytest.raises(StoreError, match="cannot be read"):
        latest(tmp_path / "cat")
