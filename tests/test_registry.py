from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from eridiff.errors import DataError, StoreError
from eridiff.lora.headers import set_metadata
from eridiff.registry import Registry, Verdict, names
from eridiff.store.tensorfile import digest_tensors
from tests import lorafiles


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", "cats")


def verdict(folder: Path, content: str, decision: str = "promoted") -> Verdict:
    source = folder / f"{content}.safetensors"
    lorafiles.write_text(source, content)
    return Verdict(decision, "lower loss", f"made of {content}", "run", "snapshot", str(source), 0.5, 0.6)  # type: ignore[arg-type]


def served(folder: Path) -> str:
    return lorafiles.read_text(folder / "served" / "cats.safetensors")


def test_a_promoted_version_is_kept_and_served(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(verdict(tmp_path, "one"), keep=5, serve=tmp_path / "served")
    assert served(tmp_path) == "one"
    assert registry.history().champion == version
    assert digest_tensors(registry.file(version)) == version.sha256
    assert registry.is_served()
    assert names(registry.root) == ["cats"]


def test_a_rejected_version_changes_nothing_but_history(registry: Registry, tmp_path: Path) -> None:
    first = registry.add(verdict(tmp_path, "one"), keep=5, serve=tmp_path / "served")
    registry.add(verdict(tmp_path, "two", "rejected"), keep=5, serve=tmp_path / "served")
    history = registry.history()
    assert served(tmp_path) == "one"
    assert history.champion == first
    assert [version.verdict.decision for version in history.versions] == ["promoted", "rejected"]
    judged = history.judged("made of two")
    assert judged is not None
    assert judged.number == 2
    assert history.judged("made of three") is None


def test_rollback_goes_back_one_champion_each_time(registry: Registry, tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        registry.add(verdict(tmp_path, content), keep=5, serve=tmp_path / "served")
    assert registry.rollback().number == 2
    assert served(tmp_path) == "two"
    assert registry.rollback().number == 1
    assert served(tmp_path) == "one"
    with pytest.raises(DataError, match="no earlier champion"):
        registry.rollback()


def test_a_rejected_version_can_be_promoted_by_hand(registry: Registry, tmp_path: Path) -> None:
    registry.add(verdict(tmp_path, "one"), keep=5, serve=tmp_path / "served")
    registry.add(verdict(tmp_path, "two", "rejected"), keep=5, serve=None)
    registry.promote(2)
    assert served(tmp_path) == "two"
    with pytest.raises(DataError, match="champion already"):
        registry.promote(2)
    with pytest.raises(DataError, match="no such version"):
        registry.promote(3)
    registry.rollback()
    assert served(tmp_path) == "one"


def test_only_the_last_champions_files_stay(registry: Registry, tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        registry.add(verdict(tmp_path, content), keep=2, serve=None)
        (tmp_path / f"{content}.safetensors").unlink()
    assert len(list((registry.root / "cats").iterdir())) == 2
    assert registry.rollback().number == 2
    with pytest.raises(StoreError, match="version 1 of cats is gone"):
        registry.rollback()
    assert registry.history().champions == (1, 2)


def test_a_served_file_that_was_touched_is_mended(registry: Registry, tmp_path: Path) -> None:
    registry.add(verdict(tmp_path, "one"), keep=2, serve=tmp_path / "served")
    (tmp_path / "served" / "cats.safetensors").write_text("half")
    assert not registry.is_served()
    registry.serve()
    assert served(tmp_path) == "one"


def test_a_version_is_known_by_its_tensors_whatever_its_metadata(registry: Registry, tmp_path: Path) -> None:
    """A thumbnail that the run's file got after it was published makes no other LoRA of it."""
    for content in ("one", "two"):
        registry.add(verdict(tmp_path, content), keep=1, serve=tmp_path / "served")
    assert set_metadata(tmp_path / "one.safetensors", {"modelspec.thumbnail": "a picture"})
    assert registry.rollback().number == 1
    assert registry.is_served()
    assert served(tmp_path) == "one"


def test_the_served_folder_never_holds_half_a_file(registry: Registry, tmp_path: Path) -> None:
    """A reader that looks all the time sees whole files under the served name, and no other LoRA file."""
    contents = {str(number) * 3_000_000 for number in range(6)}
    seen: set[str] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            for path in (tmp_path / "served").glob("*.safetensors"):
                seen.add(lorafiles.read_text(path))

    reader = threading.Thread(target=read)
    reader.start()
    for content in sorted(contents):
        source = tmp_path / "source.safetensors"
        lorafiles.write_text(source, content)
        made = Verdict("promoted", "", "", "", "", str(source), None, None)
        registry.add(made, keep=1, serve=tmp_path / "served")
    ended.set()
    reader.join()
    assert seen <= contents
    assert seen


def test_verdicts_of_two_processes_get_numbers_of_their_own(registry: Registry, tmp_path: Path) -> None:
    made = [verdict(tmp_path, f"v{number}") for number in range(8)]
    threads = [
        threading.Thread(
            target=Registry(registry.root, "cats").add, args=(one,), kwargs={"keep": 9, "serve": None}
        )
        for one in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = registry.history()
    assert sorted(version.verdict.made_of for version in history.versions) == sorted(v.made_of for v in made)
    assert [version.number for version in history.versions] == list(range(1, 9))


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"versions": [{"number": 3}], "champions": []})])
def test_a_damaged_history_is_no_empty_one(registry: Registry, text: str) -> None:
    registry.root.mkdir()
    (registry.root / "cats.json").write_text(text)
    with pytest.raises(StoreError, match="cannot be read"):
        registry.history()
