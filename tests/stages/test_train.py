"""The stage: from ingested and precomputed images to LoRA files, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import family_of
from eridiff.errors import DataError, RecipeError, StoreError
from eridiff.lora.read import read_lora
from eridiff.recipe import Recipe
from eridiff.store.runs import Run, latest
from eridiff.training import checkpoint
from eridiff.training.inputs import inputs_of
from eridiff.training.shelf import folder_of, steps_in
from stages import evaluate, ingest, precompute, train
from stages.dataset import current_snapshot

ROOT = Path(__file__).parents[2]
ONE = families.names()[1]
"""The family for what does not depend on it."""


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(6):
        image = Image.new("RGB", (96 if number % 2 else 64, 64), ("red", "green", "blue")[number % 3])
        ImageDraw.Draw(image).ellipse((8, 8 + number, 40, 50), fill="white")
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a white ellipse, number {number}")


def sections(folder: Path, family: str) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"family": family, "base": str(folder / "base")},
        "datasets": [{"folder_path": str(folder / "images"), "resolution": 64, "flip_x": True}],
        "ingest": {"holdout": 0.0, "bucket_step": 16},
        "network": {"linear": 2, "linear_alpha": 2},
        "train": {"batch_size": 2, "steps": 6, "lr": 0.01, "dtype": "fp32", "gradient_checkpointing": False},
        "save": {"save_every": 2, "dtype": "fp32"},
        "logging": {"log_every": 1},
        "storage": {"data": str(folder / "data"), "runs": str(folder / "runs")},
        "device": "cpu",
    }


def recipe(folder: Path, family: str = ONE, **changes: dict[str, Any]) -> Recipe:
    """The tests' recipe; `changes` are merged into its sections."""
    made = sections(folder, family)
    for name, change in changes.items():
        made[name] = {**made.get(name, {}), **change}
    return Recipe.model_validate(made)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes, once a family, a folder with all that precompute leaves, encoders and VAE deleted."""
    made: dict[str, Path] = {}

    def prepare(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(f"stage-{family}")
            write_images(folder / "images")
            save_random_base(family, folder / "base")
            ingest.run(recipe(folder, family))
            precompute.run(recipe(folder, family))
            kept = {*families.get(family, {}).parts.denoiser, "model_index.json"}
            for path in (folder / "base").iterdir():
                if path.is_dir() and path.name not in kept:
                    shutil.rmtree(path)
            made[family] = folder
        return made[family]

    return prepare


@pytest.fixture
def root(prepared: Any, tmp_path: Path) -> tuple[Path, Path]:
    """What is prepared, and a place for runs."""
    return prepared(ONE), tmp_path


def chosen(root: tuple[Path, Path], *, runs: str = "runs", **changes: dict[str, Any]) -> Recipe:
    """The tests' recipe with its runs in a folder of the test's own."""
    return recipe(root[0], storage={"runs": str(root[1] / runs)}, **changes)


def written(root: tuple[Path, Path], made: Recipe) -> Path:
    path = root[1] / "recipe.yaml"
    path.write_text(json.dumps(made.model_dump(mode="json")))
    return path


def run_of(made: Recipe) -> Run:
    return inputs_of(made, current_snapshot(made)).run


@pytest.mark.parametrize("family", families.names())
def test_training_needs_neither_vae_nor_encoders(prepared: Any, family: str) -> None:
    made = recipe(prepared(family), family)
    assert train.plan(made).missing == 6
    report = train.run(made)
    assert (report.done, report.reused) == (6, 0)
    run = latest(Path(made.storage.runs) / "tiny")
    assert run == run_of(made)
    assert run.sealed
    assert train.plan(made).complete
    names = {path.name for path in run.lora.iterdir()}
    assert names == {"tiny.safetensors", "tiny-000002.safetensors", "tiny-000004.safetensors"}

    kept = checkpoint.load(folder_of(run, 6))
    lora = read_lora(Path(report.outputs["lora"]), family_of(made))
    component = family_of(made).parts.denoiser[0]
    trained = {name.removesuffix(".lora_A.weight") for name in kept.lora if name.endswith(".lora_A.weight")}
    assert {f"{component}.{name}" for name in trained} == set(lora.layers)
    for name in trained:
        down, up = (kept.lora[f"{name}.lora_{half}.weight"] for half in "AB")
        change = lora.layers[f"{component}.{name}"].change()
        torch.testing.assert_close(
            change.flatten(1).float(), up.flatten(1) @ down.flatten(1), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_from_weights_gives_a_file_for_the_untouched_base(root: tuple[Path, Path], init: str) -> None:
    made = chosen(root, network={"linear_alpha": 3, "init": init}, train={"loraplus_lr_ratio": 4})
    report = train.run(made)
    kept = checkpoint.load(folder_of(run_of(made), 6))
    lora, header = read_lora(Path(report.outputs["lora"]), family_of(made)), Path(report.outputs["lora"])
    assert kept.start is not None
    for layer, adapter in lora.layers.items():
        name = layer.partition(".")[2]
        now, start = (
            state[f"{name}.lora_B.weight"].double() @ state[f"{name}.lora_A.weight"].double()
            for state in (kept.lora, kept.start)
        )
        assert adapter.rank == 4
        torch.testing.assert_close(adapter.change(), 1.5 * (now - start), rtol=1e-4, atol=1e-6)
    with safe_open(header, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
        assert file.metadata()["eridiff.init"] == init


def test_a_lora_file_says_where_it_comes_from(root: tuple[Path, Path]) -> None:
    made = chosen(root)
    report = train.run(made)
    with safe_open(report.outputs["lora"], "pt") as file:
        told = file.metadata()
    inputs = inputs_of(made, current_snapshot(made))
    assert told["eridiff.snapshot"] == inputs.snapshot
    assert told["eridiff.run"] == inputs.run.id
    assert told["eridiff.steps"] == told["ss_steps"] == "6"
    facts = json.loads(inputs.run.environment.read_text())
    assert facts["torch"] == metadata.version("torch")
    assert inputs.run.recipe.exists()


def test_a_finished_recipe_is_not_trained_again_and_loads_no_torch(root: tuple[Path, Path]) -> None:
    made = chosen(root)
    train.run(made)
    path = written(root, made)
    check = (
        "import sys; from pathlib import Path; from stages import pipeline, train;"
        f"recipe = pipeline.load_recipe(Path({str(path)!r}));"
        "assert train.plan(recipe).complete; print(train.run(recipe).done);"
        "print(*sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["0"]


def test_a_lora_file_that_was_deleted_is_exported_again_without_training(root: tuple[Path, Path]) -> None:
    made = chosen(root)
    report = train.run(made)
    file = Path(report.outputs["lora"])
    before = read_lora(file, family_of(made))
    run = run_of(made)
    sealed = run.read_seal()
    run.seal({**sealed, "attention_difference": 0.001})  # as on a GPU
    file.unlink()
    assert not train.plan(made).complete
    again = train.run(made)
    assert (again.done, again.outputs) == (0, report.outputs)
    after = read_lora(file, family_of(made))
    for name, adapter in before.layers.items():
        assert torch.equal(adapter.change(), after.layers[name].change())
    assert sealed["numbers"]["loss"] > 0
    assert run.read_seal() == {**sealed, "attention_difference": 0.001}


def test_a_run_killed_before_its_seal_has_the_numbers_of_its_last_step(root: tuple[Path, Path]) -> None:
    made = chosen(root)
    report = train.run(made)
    run = run_of(made)
    (run.folder / "seal.json").unlink()
    again = train.run(made)
    assert (again.done, again.outputs) == (0, report.outputs)
    assert run.read_seal()["numbers"] == run.last_numbers()


def test_bytes_written_are_those_of_this_call(root: tuple[Path, Path]) -> None:
    made = chosen(root)
    run = run_of(made)
    lock = run.folder / "training.lock"  # signed before anything is made
    written = train.run(made).bytes_written
    assert written == nbytes(run.folder) - lock.stat().st_size
    run.evaluation.mkdir()
    (run.evaluation / "grid.png").write_bytes(bytes(10_000_000))
    lora_bytes = run.lora_file().stat().st_size
    run.lora_file().unlink()
    assert lora_bytes < train.run(made).bytes_written < written
    assert train.run(made).bytes_written == 0


def nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_lora_to_start_from_that_is_not_there_is_told(root: tuple[Path, Path]) -> None:
    made = chosen(root, network={"init_from": str(root[1] / "absent.safetensors")})
    for look in (train.plan, train.run, evaluate.plan, evaluate.run):
        with pytest.raises(RecipeError, match="no such LoRA to start from") as caught:
            look(made)
        assert caught.value.where == "network.init_from"
        assert caught.value.found == root[1] / "absent.safetensors"


SAME_RUN = [{"gradient_checkpointing": True}, {"attention": "math"}, {"compile": False}]
OTHER_RUN = [{"lr": 0.02}, {"seed": 1}, {"steps": 7}, {"batch_size": 3}, {"optimizer": "torch.optim.SGD"}]


@pytest.mark.parametrize(
    ("change", "same"), [*((c, True) for c in SAME_RUN), *((c, False) for c in OTHER_RUN)]
)
def test_a_run_is_named_by_what_decides_its_lora(
    root: tuple[Path, Path], change: dict[str, Any], same: bool
) -> None:
    assert (run_of(chosen(root, train=change)) == run_of(chosen(root))) == same


def test_network_options_and_file_type_decide_the_run_too(root: tuple[Path, Path]) -> None:
    runs = [
        run_of(chosen(root, **change)).id
        for change in (
            {},
            {"network": {"linear": 4}},
            {"save": {"dtype": "fp16"}},
            {"model": {"options": {"loss": "preconditioned"}}},
        )
    ]
    assert len(set(runs)) == len(runs)


def test_recomputing_activations_trains_the_same_lora(root: tuple[Path, Path]) -> None:
    ends = []
    for number, recompute in enumerate((False, True)):
        made = chosen(root, runs=f"runs{number}", train={"gradient_checkpointing": recompute})
        train.run(made)
        ends.append(checkpoint.load(folder_of(run_of(made), 6)).lora)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)


def test_bfloat16_keeps_the_lora_in_float32(root: tuple[Path, Path]) -> None:
    made = chosen(root, train={"dtype": "bf16", "steps": 2})
    train.run(made)
    kept = checkpoint.load(folder_of(run_of(made), 2))
    assert {value.dtype for value in kept.lora.values()} == {torch.float32}


def test_nothing_ingested_is_told(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    save_random_base(ONE, tmp_path / "base")
    plan = train.plan(recipe(tmp_path))
    assert (plan.done, plan.missing) == (0, 6)
    with pytest.raises(DataError, match="ingested"):
        train.run(recipe(tmp_path))
    ingest.run(recipe(tmp_path))
    assert "latents to encode" in train.plan(recipe(tmp_path)).details
    with pytest.raises(StoreError, match="missing") as caught:
        train.run(recipe(tmp_path))
    assert "eridiff precompute" in str(caught.value)


@pytest.mark.parametrize(
    ("logging", "package"), [({"tensorboard": True}, "tensorboard"), ({"wandb_project": "x"}, "wandb")]
)
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    root: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, logging: dict[str, Any], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match=f"{package} is not installed") as caught:
        train.run(chosen(root, logging=logging))
    assert "eridiff[trackers]" in str(caught.value)


def start(path: Path, *launcher: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "stages.train", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(condition: Any, process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_says_how_to_go_on_and_ends_with_130(
    root: tuple[Path, Path], number: signal.Signals
) -> None:
    made = chosen(root, train={"steps": 60}, save={"save_every": 40})
    path = written(root, made)
    run = run_of(made)
    process = start(path)
    wait_for(lambda: run.metrics.exists() and len(run.metrics.read_text().splitlines()) > 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "run the same command again" in output
    (step,) = steps_in(run)
    assert step < 40
    assert train.plan(made).done == step
    assert [path.name for path in run.lora.iterdir()] == [f"tiny-{step:06d}.safetensors"]

    report = train.run(made)
    assert (report.done, report.reused) == (60 - step, step)
    assert {path.name for path in run.lora.iterdir()} == {"tiny.safetensors", "tiny-000040.safetensors"}
    straight = chosen(root, train={"steps": 60}, runs="straight")
    train.run(straight)
    ends = [checkpoint.load(folder_of(run_of(each), 60)).lora for each in (made, straight)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("shard_base", [False, True])
def test_torchrun_with_two_processes_makes_one_run(root: tuple[Path, Path], shard_base: bool) -> None:
    made = chosen(root, runs=f"pair-{shard_base}", train={"shard_base": shard_base})
    path = written(root, made)
    process = start(path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("lora: ") == 1, "one process speaks"
    run = run_of(made)
    assert run.sealed
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == list(range(1, 7))
    alone = chosen(root, runs="alone")
    train.run(alone)
    ends = [checkpoint.load(folder_of(run_of(each), 6)).lora for each in (made, alone)]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-2, atol=1e-4)


def test_blocks_kept_in_system_memory_train_the_same_run(root: tuple[Path, Path]) -> None:
    kept = {}
    for share in (0.0, 0.5, 1.0):
        made = chosen(root, runs=f"away-{share}", train={"offload": share})
        train.run(made)
        assert run_of(made).id == run_of(chosen(root)).id
        kept[share] = checkpoint.load(folder_of(run_of(made), 6)).lora
    for name, value in kept[1.0].items():
        assert torch.equal(value, kept[0.5][name]), "however many blocks are away"
        # Blocks that stay make queries, keys and values in one product, which rounds otherwise.
        torch.testing.assert_close(value, kept[0.0][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("quantize", ["int8", "nf4", "fp8"])
def test_a_base_in_few_bits_is_another_run(root: tuple[Path, Path], quantize: str) -> None:
    assert run_of(chosen(root, model={"quantize": quantize})).id != run_of(chosen(root)).id


@pytest.mark.parametrize(
    ("family", "quantize"), [*((family, "nf4") for family in families.names()), (ONE, "int8"), (ONE, "fp8")]
)
def test_a_lora_of_a_base_in_few_bits_passes_the_gate(prepared: Any, family: str, quantize: str) -> None:
    made = recipe(prepared(family), family, model={"quantize": quantize}, train={"offload": 0.5})
    report = train.run(made)
    assert run_of(made).sealed
    lora = read_lora(Path(report.outputs["lora"]), family_of(made))
    assert any(adapter.up.any() for adapter in lora.layers.values()), "it learnt"
