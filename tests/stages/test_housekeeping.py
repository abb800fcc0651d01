from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eridiff.registry import Registry, Verdict
from eridiff.store.files import write_json
from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.store.runs import Run
from eridiff.store.snapshots import Sample, Snapshot, save_current, text_key
from eridiff.store.tensorfile import digest_tensors
from eridiff.store.workspace import Workspace
from stages import cli
from stages.reclaim import Places, garbage
from stages.verify import Fault, faults
from tests import lorafiles

SPACE = "b" * 32
KEY = "0" * 64


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(Workspace(tmp_path / "data", tmp_path / "runs"), tmp_path / "registry")


def snapshot_of(caption: str) -> Snapshot:
    sizes = dict.fromkeys(
        ("width", "height", "resized_width", "resized_height", "bucket_width", "bucket_height"), 64
    )
    one = Sample(
        sample_id="a-64x64",
        content="c" * 64,
        captions=(caption,),
        crop_left=0,
        crop_top=0,
        flip=False,
        split="train",
        repeats=1,
        shard="one.tar",
        source="a.png",
        dataset=0,
        **sizes,
    )
    return Snapshot((one,))


def ingested(places: Places, caption: str) -> Snapshot:
    """A snapshot made current, with its text and latents stored."""
    snapshot = snapshot_of(caption)
    save_current(places.workspace.datasets, KEY, snapshot)
    for root, keys in (
        (places.workspace.text, [text_key(caption)]),
        (places.workspace.latents, list(snapshot.samples[0].latent_keys())),
    ):
        store = TensorStore(root, SPACE)
        if missing := store.missing(keys):
            store.append([Item(key, {"v": StoredTensor("F32", (1,), b"1234")}) for key in missing])
    return snapshot


def trained(places: Places, snapshot: Snapshot, run_id: str, *, newest: bool = True) -> Run:
    run = Run(places.workspace.run_root("cats"), run_id)
    run.lora.mkdir(parents=True)
    run.recipe.write_text(
        f"name: cats\nmodel: {{family: sdxl, base: b}}\ndatasets: [{{folder_path: {run.root}}}]\n"
        "sample: {prompts: [a prompt]}\n"
    )
    lorafiles.write_text(run.lora_file(), run_id)
    write_json(run.environment, {"provenance": {"snapshot": snapshot.id, "latents": SPACE, "text": SPACE}})
    run.seal({"lora_tensors": digest_tensors(run.lora_file())})
    if newest:
        run.make_latest()
    return run


def registered(places: Places, run: Run, snapshot: Snapshot, served: Path | None = None) -> None:
    verdict = Verdict("promoted", "", "", run.id, snapshot.id, str(run.lora_file()), None, None)
    Registry(places.registry, "cats").add(verdict, keep=3, serve=served)


def kinds(places: Places, *, old_runs: bool = False) -> list[str]:
    return sorted(found.what for found in garbage(places, [], old_runs=old_runs, min_age_s=0))


def test_what_a_run_was_made_of_stays(places: Places) -> None:
    before = ingested(places, "a cat")
    trained(places, before, "run-1")
    ingested(places, "one cat")
    assert kinds(places) == []


def test_a_superseded_snapshot_that_no_run_used_goes(places: Places) -> None:
    ingested(places, "a cat")
    after = ingested(places, "one cat")
    trained(places, after, "run-1")
    assert kinds(places) == ["snapshot", "text"]


def test_old_runs_go_only_when_asked_and_never_registered_ones(places: Places) -> None:
    snapshots = [ingested(places, caption) for caption in ("one", "two", "three")]
    runs = [trained(places, snapshot, f"run-{n}") for n, snapshot in enumerate(snapshots)]
    registered(places, runs[0], snapshots[0])
    assert kinds(places) == []
    assert kinds(places, old_runs=True) == ["run", "snapshot", "text"]
    (run,) = [g for g in garbage(places, [], old_runs=True, min_age_s=0) if g.what == "run"]
    assert run.paths == (runs[1].folder,)


def options(places: Places) -> list[str]:
    place = places.workspace
    return ["--data", str(place.data), "--runs", str(place.runs), "--registry", str(places.registry)]


def called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--json"])
    return int(str(ended.value.code)), json.loads(capsys.readouterr().out)


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, and what a person reads on standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    output, error = capsys.readouterr()
    return int(str(ended.value.code)), output, error


def column(table: str, number: int) -> str:
    """The cells of a column, one after the other, without the line breaks of a narrow terminal."""
    rows = (line.split("\u2502") for line in table.splitlines())
    return "".join(cells[number].strip() for cells in rows if len(cells) > number)


def test_gc_deletes_only_when_told(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    ingested(places, "a cat")
    trained(places, ingested(places, "one cat"), "run-1")
    places.registry.mkdir()
    command = ["gc", *options(places), "--hours", "0"]
    code, rows = called(command, capsys)
    assert (code, len(rows)) == (0, 2)
    assert len(called([*command, "--delete"], capsys)[1]) == 2
    assert called(command, capsys) == (0, [])


def test_gc_shows_paths_whole(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    ingested(places, "a cat")
    trained(places, ingested(places, "one cat"), "run-1")
    places.registry.mkdir()
    command = ["gc", *options(places), "--hours", "0"]
    _, rows = called(command, capsys)
    code, table, _ = told(command, capsys)
    assert code == 0
    for row in rows:
        assert row["path"] in column(table, 3)


@pytest.mark.parametrize("command", ["gc", "verify"])
@pytest.mark.parametrize("option", ["--data", "--runs", "--registry"])
def test_a_folder_that_is_not_there_is_no_good_store(
    places: Places, tmp_path: Path, command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("data", "runs", "registry"):
        (tmp_path / name).mkdir()
    assert told([command, *options(places)], capsys)[0] == 0
    code, _, error = told([command, *options(places), option, str(tmp_path / "nosuch")], capsys)
    assert code == 4
    assert str(tmp_path / "nosuch") in error


@pytest.mark.parametrize("command", ["gc", "verify"])
def test_what_was_only_ingested_needs_no_runs_and_no_registry(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told([command], capsys)[0] == 4
    (tmp_path / "data").mkdir()
    assert told([command], capsys)[0] == 0


def test_a_whole_store_has_no_faults(places: Places, tmp_path: Path) -> None:
    snapshot = snapshot_of("a cat")
    snapshot.save(places.workspace.datasets / "key" / "snapshots")
    run = trained(places, snapshot, "run-1")
    registered(places, run, snapshot, tmp_path / "served")
    assert faults(places) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("data/text/*/parts/*.safetensors", "digest"),
        ("runs/cats/run-1/lora/cats.safetensors", "not the file that was sealed"),
        ("registry/cats/*.safetensors", "not the file that was promoted"),
        ("served/cats.safetensors", "not the champion"),
        ("registry/cats.json", "cannot be read"),
        ("data/datasets/*/snapshots/*.parquet", "cannot be read"),
    ],
)
def test_a_flipped_bit_is_found(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, message: str
) -> None:
    snapshot = ingested(places, "a cat")
    (places.workspace.datasets / KEY[:16] / "current.json").unlink()
    run = trained(places, snapshot, "run-1")
    registered(places, run, snapshot, tmp_path / "served")
    (path,) = tmp_path.glob(where)
    flip(path)
    code, found = called(["verify", *options(places)], capsys)
    assert code == 4
    assert any(message in fault["what"] for fault in found), found


def test_verify_shows_paths_whole_and_counts_in_words(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    runs = [trained(places, snapshot_of("a cat"), f"run-{number:032d}") for number in range(2)]
    command = ["verify", "--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    flip(runs[0].lora_file())
    code, table, error = told(command, capsys)
    assert code == 4
    assert str(runs[0].lora_file()) in column(table, 1)
    assert "One thing is not as it was written." in error
    flip(runs[1].lora_file())
    assert "2 things are not as they were written." in told(command, capsys)[2]


def test_verify_advises_to_make_no_more_than_the_file_again(places: Places) -> None:
    run = trained(places, snapshot_of("a cat"), "run-1")
    again = "run `eridiff train` with its recipe"
    flip(run.lora_file())
    assert faults(places) == [
        Fault(str(run.lora_file()), "not the file that was sealed", f"delete cats.safetensors and {again}")
    ]
    run.lora_file().unlink()
    assert faults(places) == [Fault(str(run.lora_file()), "missing", again)]
    (run.folder / "seal.json").write_text("{")
    (fault,) = faults(places)
    assert (fault.where, fault.fix) == (str(run.folder / "seal.json"), f"delete it and {again}")
