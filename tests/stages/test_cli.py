"""Exit codes and messages of the command line, for what users get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from eridiff.demo.architecture import save_random_base
from stages import cli

RECIPE = """\
name: test
model: {{family: {family}, base: "{base}"}}
datasets: [{{folder_path: "{images}", resolution: 128}}]
train: {{steps: 1, dtype: fp32}}
storage: {{data: "{root}/data", runs: "{root}/runs"}}
device: cpu
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_random_base("flux", folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (128, 128), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a red square")
    return folder


def write(folder: Path, images: Path, *, family: str = "flux", base: object = "absent") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(family=family, base=base, images=images, root=folder))
    return path


def ended(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def missing(folder: Path) -> None:
    (folder / "a.png").unlink()
    (folder / "a.txt").unlink()
    folder.rmdir()


def empty(folder: Path) -> None:
    (folder / "a.png").unlink()
    (folder / "a.txt").unlink()


def uncaptioned(folder: Path) -> None:
    (folder / "a.txt").unlink()


def corrupt(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")


def nothing_in_it(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"")


def not_utf8(folder: Path) -> None:
    (folder / "a.txt").write_bytes("ein grünes Quadrat".encode("latin-1"))


@pytest.mark.parametrize("spoil", [missing, empty, uncaptioned, corrupt, nothing_in_it, not_utf8])
def test_bad_folders_end_with_3_and_a_remedy(
    tmp_path: Path, images: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(images)
    assert ended("ingest", write(tmp_path, images)) == 3
    told = capsys.readouterr().err
    assert "where:" in told
    assert "do:" in told


def test_a_missing_base_ends_with_5(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run", write(tmp_path, images, base=tmp_path / "nowhere")) == 5
    assert "nowhere" in capsys.readouterr().err


def test_a_base_of_another_family_ends_with_5(
    tmp_path: Path, images: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("run", write(tmp_path, images, family="sdxl", base=base)) == 5
    assert "FluxPipeline" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["precompute", "train", "evaluate"])
def test_stages_out_of_order_name_the_stage_that_is_due(
    tmp_path: Path, images: Path, base: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(stage, write(tmp_path, images, base=base)) == 3
    assert "ingest" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "/"])
def test_parts_that_are_none_end_with_2(tmp_path: Path, images: Path, base: Path, text: str) -> None:
    assert ended("precompute", write(tmp_path, images, base=base), "--part", text) == 2


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "absent.yaml"), ("paint", "x.yaml"), ("run", "x", "--bogus"), ("recipe",)]
)
def test_wrong_arguments_end_with_2(arguments: tuple[str, ...]) -> None:
    assert ended(*arguments) == 2


def test_plan_touches_nothing(
    tmp_path: Path, images: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("plan", write(tmp_path, images, base=base), "--json") == 0
    stages = [row["stage"] for row in json.loads(capsys.readouterr().out)]
    assert stages == ["ingest", "precompute", "train", "evaluate"]
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "runs").exists()


def test_a_printed_recipe_is_a_recipe(
    tmp_path: Path, images: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, images, base=base)
    assert ended("recipe", path, "--set", "train.lr=2e-4") == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert ended("recipe", printed, "--json") == 0
    assert json.loads(capsys.readouterr().out)["train"]["lr"] == 2e-4


def test_brackets_in_paths_are_shown(
    tmp_path: Path, images: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my [v2] [/] :x:"
    folder.mkdir(parents=True)
    assert ended("ingest", write(folder, images, base=base)) == 0
    assert f"{folder}/data" in capsys.readouterr().out
    assert ended("ingest", write(folder, folder / "nowhere [red]", base=base)) == 3
    assert f"{folder}/nowhere [red]" in capsys.readouterr().err
