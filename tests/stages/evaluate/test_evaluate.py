"""What evaluate makes, keeps and says."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file, save_file

from eridiff.errors import Interrupted, RecipeError, StoreError
from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora.headers import set_metadata
from eridiff.lora.thumbnail import THUMBNAIL
from stages import evaluate, precompute
from tests.stages.evaluate.world import ALL, World, copied, pretend_training

ROOT = Path(__file__).parents[3]


def test_everything_is_made_once_and_without_text_encoders(any_world: World) -> None:
    planned, report = any_world.planned, any_world.report
    assert (planned.done, planned.missing) == (0, ALL)
    assert (report.done, report.reused) == (ALL, 0)
    assert report.bytes_written > 0
    assert evaluate.plan(any_world.recipe()).complete
    before = {path: path.stat().st_mtime_ns for path in any_world.evaluation.rglob("*")}
    again = evaluate.run(any_world.recipe())
    assert (again.done, again.reused, again.bytes_written) == (0, ALL, 0)
    assert again.outputs == report.outputs
    assert {path: path.stat().st_mtime_ns for path in any_world.evaluation.rglob("*")} == before


def test_outputs_name_what_people_look_for(any_world: World) -> None:
    outputs = any_world.report.outputs
    for name in ("grid", "checkpoint grid", "report", "lora"):
        assert Path(outputs[name]).is_file()
    assert outputs["lora"].endswith("lora/tiny.safetensors")
    assert "before" in outputs["hold-out loss"]
    assert outputs["score"].startswith("base: 0.")
    html = Path(outputs["report"]).read_text()
    for words in ("Hold-out", "Scores", "Buckets", "Provenance", "tiny-000010.safetensors", "a red circle"):
        assert words in html


def test_images_differ_by_lora_and_carry_their_words(any_world: World) -> None:
    found: dict[tuple[str, str, str], bytes] = {}
    for path in (any_world.evaluation / "images").iterdir():
        with Image.open(path) as image:
            words = image.text  # pyright: ignore[reportAttributeAccessIssue]
            found[words["prompt"], words["seed"], words["checkpoint"]] = image.tobytes()
            assert image.size == (64, 64)
            assert words["strength"] == ("0" if words["checkpoint"] == "base" else "1")
    prompts, checkpoints = ("a red circle, in flat style", "two stars"), ("base", "step 10", "step 20")
    assert set(found) == {(p, seed, c) for p in prompts for seed in "12" for c in checkpoints}
    assert len(set(found.values())) == len(found)


def test_losses_are_kept_by_subject_with_their_points(any_world: World) -> None:
    kept = json.loads((any_world.evaluation / "validation.json").read_text())
    assert kept["grid"]["times"] == [0.25, 0.75]
    assert len(kept["grid"]["images"]) == 4
    labels = {entry["label"]: entry for entry in kept["subjects"].values()}
    assert set(labels) == {"base", "step 10", "step 20"}
    assert all(len(e["values"]) == 4 and len(e["by_time"]) == 2 for e in labels.values())
    assert len({entry["mean"] for entry in labels.values()}) == 3


def test_a_new_prompt_costs_its_own_images(world: World) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (world.evaluation / "images").iterdir()}
    more = world.recipe(sample={"prompts": ["a red circle, [trigger]", "two stars", "a green square"]})
    precompute.run(more, half="text")
    assert evaluate.plan(more).missing == 2 * 3 + 1
    evaluate.run(more)
    now = {path: path.stat().st_mtime_ns for path in (world.evaluation / "images").iterdir()}
    assert len(now) == len(kept) + 6
    assert kept.items() <= now.items()


def test_a_damaged_page_is_made_again_from_what_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.run(world.recipe())
    whole = world.files()
    (world.evaluation / "grid.png").unlink()
    (world.evaluation / "shown.json").write_text("{")
    monkeypatch.setattr(evaluate, "_make", lambda *_: pytest.fail("the models were loaded"))
    assert evaluate.run(world.recipe()).done == 1
    assert world.files() == whole


class StopAfter:
    """A flag that is true once it was asked `count` times."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_stopped_evaluation_goes_on_where_it_was(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = world, copied(world, tmp_path / "stopped")
    shutil.rmtree(stopped.evaluation)
    chosen = stopped.recipe()
    for count in (2, 4):
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "stopping", lambda count=count: nullcontext(StopAfter(count)))
            with pytest.raises(Interrupted):
                evaluate.run(chosen)
    assert not (stopped.evaluation / "shown.json").exists()
    report = evaluate.run(chosen)
    assert report.done < ALL
    images = {name: data for name, data in straight.files().items() if name.startswith("images")}
    assert {name: data for name, data in stopped.files().items() if name.startswith("images")} == images
    for name in ("validation.json", "scores.json", "grid.png", "checkpoints.png"):
        assert stopped.files()[name] == straight.files()[name]


@pytest.mark.slow
def test_a_killed_evaluation_leaves_nothing_half_written(world: World, tmp_path: Path) -> None:
    straight, killed = world, copied(world, tmp_path / "killed")
    shutil.rmtree(killed.evaluation)
    command = [sys.executable, "-m", "stages.evaluate", str(killed.recipe_file())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.evaluation.glob("images/*.png")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    evaluate.run(killed.recipe())
    made = {name: data for name, data in killed.files().items() if not Path(name).name.startswith(".")}
    images = {name: data for name, data in straight.files().items() if name.startswith("images")}
    assert images.items() <= made.items()
    assert made["validation.json"] == straight.files()["validation.json"]


def test_a_finished_evaluation_loads_no_tensor_library(any_world: World) -> None:
    check = (
        "import sys; from pathlib import Path; from stages import evaluate, pipeline\n"
        "chosen = pipeline.load_recipe(Path(sys.argv[1]))\n"
        "assert evaluate.plan(chosen).complete and not evaluate.run(chosen).done\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", check, str(any_world.recipe_file())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_prompts_hold_out_and_metric_there_is_still_a_page(world: World) -> None:
    chosen = world.recipe(sample={"prompts": [], "metric": None}, validation={"images": 0})
    report = evaluate.run(chosen)
    assert report.done == 1
    assert set(report.outputs) == {"report", "lora"}
    assert evaluate.plan(chosen).complete


def small(thumbnail: str) -> Image.Image:
    start = "data:image/jpeg;base64,"
    assert thumbnail.startswith(start)
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail.removeprefix(start))))
    assert image.format == "JPEG"
    return image


def test_the_lora_file_shows_its_own_image(any_world: World) -> None:
    path = Path(any_world.report.outputs["lora"])
    metadata = read_header(path).metadata
    image = small(metadata[THUMBNAIL])
    assert max(image.size) <= 256
    data = path.read_bytes()
    payload = data[8 + int.from_bytes(data[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(payload).hexdigest()
    apart: dict[float, dict[str, str]] = {}
    for sampled in (any_world.evaluation / "images").iterdir():
        with Image.open(sampled) as whole:
            difference = ImageChops.difference(whole.convert("RGB"), image)
            apart[sum(ImageStat.Stat(difference).mean)] = whole.text  # pyright: ignore[reportAttributeAccessIssue]
    nearest = apart[min(apart)]
    assert (nearest["prompt"], nearest["seed"]) == ("a red circle, in flat style", "1")
    assert (nearest["checkpoint"], nearest["strength"]) == ("step 20", "1")


def test_a_thumbnail_costs_no_loss_and_no_image_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's bytes changed after it was evaluated; what was found of its tensors still holds."""
    monkeypatch.setattr(evaluate, "_make", lambda *_: pytest.fail("the models were loaded"))
    evaluate.run(world.recipe())  # in a folder of its own: another page
    (path,) = world.runs.glob("tiny/*/lora/tiny.safetensors")
    whole = path.read_bytes()
    assert set_metadata(path, {THUMBNAIL: None})  # as a training that wrote the file again would leave it
    assert evaluate.plan(world.recipe()).missing == 1
    assert evaluate.run(world.recipe()).done == 1
    assert path.read_bytes() == whole
    assert evaluate.plan(world.recipe()).complete
    plain = world.recipe(sample={"thumbnail": False})
    assert evaluate.run(plain).done == 1
    assert THUMBNAIL not in read_header(path).metadata
    assert evaluate.plan(plain).complete


def test_only_the_last_checkpoint_is_sampled_unless_all_are_asked_for(world: World) -> None:
    shutil.rmtree(world.evaluation / "images")
    report = evaluate.run(world.recipe(sample={"checkpoints": "last"}))
    assert len(list((world.evaluation / "images").iterdir())) == 4 * 2
    assert "checkpoint grid" not in report.outputs


def test_without_a_training_there_is_nothing_to_evaluate(world: World, tmp_path: Path) -> None:
    untrained = replace(world, runs=tmp_path / "elsewhere").recipe()
    assert evaluate.plan(untrained).details == {"not yet": "There is no finished training to evaluate."}
    assert not evaluate.plan(untrained).complete
    with pytest.raises(StoreError, match="no finished training"):
        evaluate.run(untrained)


def test_a_lora_that_was_deleted_is_to_be_made_again_first(world: World) -> None:
    (path,) = world.runs.glob("tiny/*/lora/tiny.safetensors")
    path.unlink()
    assert evaluate.plan(world.recipe()).details == {"not yet": "There is no finished training to evaluate."}
    with pytest.raises(StoreError, match="no finished training"):
        evaluate.run(world.recipe())


def test_a_lora_that_was_exchanged_is_not_taken_for_the_runs(world: World) -> None:
    (path,) = world.runs.glob("tiny/*/lora/tiny.safetensors")
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    kept = world.files()
    assert evaluate.plan(world.recipe()).details == {
        "not yet": "This LoRA file is not the one that the training ended with."
    }
    with pytest.raises(StoreError, match="not the one that the training ended with"):
        evaluate.run(world.recipe())
    assert world.files() == kept


def test_a_prompt_without_embedding_says_to_precompute(world: World) -> None:
    chosen = world.recipe(sample={"prompts": ["never embedded"]})
    with pytest.raises(StoreError, match="missing"):
        evaluate.run(chosen)


def test_a_metric_that_is_none_is_a_bad_recipe_before_anything_is_loaded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_make", lambda *_: pytest.fail("the models were loaded"))
    wrong = world.recipe(sample={"metric": "no.such.module:f"})
    with pytest.raises(RecipeError):
        evaluate.run(wrong)
    untrained = replace(world, runs=tmp_path / "elsewhere").recipe(sample={"metric": "no.such.module:f"})
    for chosen in (wrong, untrained):
        with pytest.raises(RecipeError, match="metric cannot be imported"):
            evaluate.plan(chosen)


def test_a_run_of_a_base_in_few_bits_is_evaluated_in_them_and_blocks_may_stay_away(
    world: World, tmp_path: Path
) -> None:
    def evaluated(runs: str, **train: float) -> dict[str, Any]:
        settings = {
            "model": {"base": str(world.folder / "base"), "family": world.family, "quantize": "int8"},
            "train": {"steps": 20, "dtype": "fp32", **train},
            "storage": {"data": str(world.folder / "data"), "runs": str(tmp_path / runs)},
        }
        chosen = world.recipe(**settings)
        run = pretend_training(chosen)
        assert evaluate.run(chosen).done == ALL
        return json.loads((run.evaluation / "validation.json").read_text())

    plain = json.loads((world.evaluation / "validation.json").read_text())
    here, away = evaluated("here"), evaluated("away", offload=1.0)
    assert here == away, "where weights lie changes nothing"
    assert here["digest"] != plain["digest"]
    means = [found["subjects"]["base"]["mean"] for found in (here, plain)]
    assert means[0] != means[1]
    assert means[0] == pytest.approx(means[1], rel=0.02)
