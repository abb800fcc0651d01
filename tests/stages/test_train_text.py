"""The stages with text encoders in training: from captions to a grid, whatever happens on the way."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import base_of, family_of
from eridiff.errors import ModelError
from eridiff.evaluation.work import gather
from eridiff.families import live
from eridiff.families.base import SampleRequest
from eridiff.lora.inject import inject
from eridiff.lora.read import read_lora
from eridiff.recipe import Recipe
from eridiff.store.runs import Run
from eridiff.training import checkpoint
from eridiff.training.inputs import inputs_of
from eridiff.training.shelf import folder_of, steps_in
from stages import evaluate, ingest, precompute, train
from stages.dataset import current_snapshot
from tests.stages.test_train import recipe, run_of, start, wait_for, write_images, written

ALL_TRAINED, ONE = families.names()[0], families.names()[1]
"""A family all of whose encoders are trained, and one with T5 beside them."""
ON: dict[str, Any] = {
    "train": {"train_text_encoder": True, "caption_dropout_rate": 0.3, "dtype": "fp32"},
    "precompute": {"text_dtype": "fp32"},
    "ingest": {"holdout": 0.35},
    "sample": {"prompts": ["a white ellipse"], "width": 64, "height": 64, "sample_steps": 2},
    "validation": {"timesteps": 2},
}


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes, once a family, a folder with all that precompute leaves; one image has two captions."""
    made: dict[str, Path] = {}

    def prepare(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(f"text-{family}")
            write_images(folder / "images")
            for path in (folder / "images").glob("*.txt"):
                path.write_text(f"{path.read_text()}\na shape, {path.stem}")
            save_random_base(family, folder / "base")
            ingest.run(with_text(folder, family))
            precompute.run(with_text(folder, family))
            made[family] = folder
        return made[family]

    return prepare


def with_text(folder: Path, family: str, *, runs: Path | None = None, **changes: dict[str, Any]) -> Recipe:
    """The tests' recipe with text encoders in training."""
    sections = {name: {**ON.get(name, {}), **changes.get(name, {})} for name in {**ON, **changes}}
    storage = {} if runs is None else {"storage": {"data": str(folder / "data"), "runs": str(runs)}}
    made = recipe(folder, family, **sections, **storage)
    (dataset,) = made.datasets
    return made.model_copy(update={"datasets": (dataset.model_copy(update={"caption_lines": True}),)})


def kept(run: Run, step: int = 6) -> checkpoint.Checkpoint:
    return checkpoint.load(folder_of(run, step))


def equal(first: checkpoint.Checkpoint, second: checkpoint.Checkpoint) -> bool:
    assert first.lora.keys() == second.lora.keys()
    return all(torch.equal(value, second.lora[name]) for name, value in first.lora.items())


@pytest.mark.parametrize("family", families.names())
def test_every_encoder_learns_and_is_exported(ready: Any, tmp_path: Path, family: str) -> None:
    made = with_text(ready(family), family, runs=tmp_path, train={**ON["train"], "steps": 3})
    details = train.plan(made).details
    assert "captions are encoded anew" in details["text encoders"]
    report = train.run(made)
    lora = read_lora(Path(report.outputs["lora"]), family_of(made))
    state = kept(run_of(made), 3)
    for encoder in family_of(made).trainable_encoders:
        ups = {
            name: value
            for name, value in state.lora.items()
            if name.startswith(f"{encoder.name}.") and "lora_B" in name
        }
        assert ups
        assert all(value.any() for value in ups.values())
        assert {name.removesuffix(".lora_B.weight") for name in ups} <= lora.layers.keys()


def test_bfloat16_encoders_keep_their_lora_in_float32(ready: Any, tmp_path: Path) -> None:
    sections = {"precompute": {"text_dtype": "bf16"}, "train": {**ON["train"], "dtype": "bf16", "steps": 2}}
    made = with_text(ready(ONE), ONE, runs=tmp_path, **sections)
    precompute.run(made)
    train.run(made)
    assert {value.dtype for value in kept(run_of(made), 2).lora.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (ONE, {"caption_dropout_pooled": False, "ema_config": {"use_ema": True}}),
        pytest.param(ALL_TRAINED, {}, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_it_ends_with_the_same_bits(
    ready: Any, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    folder, sections = ready(family), {"train": {**ON["train"], "steps": 12, **settings}}
    straight = with_text(folder, family, runs=tmp_path / "straight", **sections)
    train.run(straight)
    killed = with_text(folder, family, runs=tmp_path / "killed", **sections)
    run, path = run_of(killed), written((folder, tmp_path), killed)
    process = start(path)
    wait_for(lambda: steps_in(run), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not run.sealed
    report = train.run(killed)
    assert 0 < report.reused < 12
    ends = kept(run_of(straight), 12), kept(run, 12)
    assert equal(*ends)
    assert (ends[0].ema is None) == ("ema_config" not in settings)
    for name, average in (ends[0].ema or {}).items():
        assert torch.equal(average, (ends[1].ema or {})[name])


def test_without_the_switch_a_run_has_the_name_and_the_bits_that_it_had(ready: Any, tmp_path: Path) -> None:
    folder = ready(ONE)
    off = with_text(folder, ONE, runs=tmp_path, train={"train_text_encoder": False})
    on = with_text(folder, ONE, runs=tmp_path)
    rate = with_text(folder, ONE, runs=tmp_path, train={**ON["train"], "text_encoder_lr": 1e-3})
    ranks = with_text(folder, ONE, runs=tmp_path, network={"text_encoder_linear": 3})
    assert len({run_of(made).id for made in (off, on, rate, ranks)}) == 4
    train.run(off)
    assert not any(name.startswith("text_encoder") for name in kept(run_of(off)).lora)


def test_a_lower_rate_moves_the_encoders_less(ready: Any, tmp_path: Path) -> None:
    folder, moved = ready(ONE), []
    for rate in (1e-2, 1e-5):
        train_section = {**ON["train"], "text_encoder_lr": rate, "steps": 2}
        made = with_text(folder, ONE, runs=tmp_path, train=train_section)
        train.run(made)
        state = kept(run_of(made), 2).lora
        moved.append(
            sum(value.norm() for name, value in state.items() if "text_encoder" in name and "lora_B" in name)
        )
    assert moved[1] < moved[0] / 100


def test_nothing_of_captions_is_read_where_all_encoders_are_trained(ready: Any, tmp_path: Path) -> None:
    made = with_text(ready(ALL_TRAINED), ALL_TRAINED, runs=tmp_path, train={**ON["train"], "steps": 1})
    inputs = inputs_of(made, current_snapshot(made))
    stored = inputs.text.store().keys()
    assert len(stored) < len({caption for sample in inputs.samples for caption in sample.captions})
    assert inputs.missing == {}
    assert train.run(made).done == 1


def test_an_encoder_that_is_gone_is_named(ready: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ready(ALL_TRAINED), folder)
    made = with_text(folder, ALL_TRAINED)
    ingest.run(made)
    precompute.run(made)
    shutil.rmtree(folder / "base" / "text_encoder_2")
    with pytest.raises(ModelError, match="text_encoder_2"):
        train.run(made)


@pytest.mark.parametrize("family", families.names())
def test_a_grid_shows_prompts_as_the_trained_encoders_read_them(
    ready: Any, tmp_path: Path, family: str
) -> None:
    folder, sections = ready(family), {"sample": {**ON["sample"], "strengths": [0, 0.5, 1]}}
    sections["network"] = {"targets": [r".*\.to_q"]}
    sections["train"] = {**ON["train"], "lr": 0.05, "steps": 3}
    made = with_text(folder, family, runs=tmp_path, **sections)
    train.run(made)
    evaluate.run(made)
    work = gather(made, run_of(made), current_snapshot(made))
    images = {picture.strength: picture.path(work.images) for picture in work.pictures}

    without = {"train_text_encoder": False, "dtype": "fp32", "steps": 1}
    plain = with_text(folder, family, runs=tmp_path / "off", train=without)
    precompute.run(plain)
    train.run(plain)
    evaluate.run(plain)
    other = gather(plain, run_of(plain), current_snapshot(plain))
    (base,) = [picture.path(other.images) for picture in other.pictures if not picture.strength]
    assert images[0].read_bytes() == base.read_bytes()

    for strength in (0.5, 1.0):
        wanted = drawn_by_hand(made, Path(run_of(made).lora_file()), strength)
        with Image.open(images[strength]) as image:
            apart = max(abs(a - b) for a, b in zip(image.tobytes(), wanted.tobytes(), strict=True))
        assert apart <= 1, strength


def drawn_by_hand(made: Recipe, path: Path, strength: float) -> Image.Image:
    """The first prompt's image with a LoRA in denoiser and encoders, put in by our own reader alone."""
    family, base, place = family_of(made), base_of(made), {"device": torch.device("cpu")}
    pipeline = family.load_pipeline(base, **place, dtype=torch.float32)
    text = live.load(family, base, **place, dtype=torch.float32)
    network = made.network.model_copy(update={"init_from": path})
    denoiser = getattr(pipeline, family.checkpoint.denoiser)
    inject(denoiser, network, family, seed=1, encoders=text.models)
    for model in (denoiser, *text.models.values()):
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", strength)  # type: ignore[operator]
    encoders = family.load_text_encoders(base, **place, dtype=torch.float32)

    def encoded(caption: str) -> Any:
        with torch.no_grad():
            cached = family.encode_prompts(encoders, [caption])
            return text.prompts([ids[:, None] for ids in text.tokens([caption])], cached)

    sample = made.sample
    request = SampleRequest((sample.seeds[0],), 64, 64, sample.sample_steps, sample.guidance_scale)
    with torch.no_grad():
        prompt, nothing = encoded(sample.prompts[0]), family.unconditional(encoded(""))
        return family.sample(pipeline, prompt, nothing, request)[0]


@pytest.mark.slow
def test_two_processes_train_what_one_does(ready: Any, tmp_path: Path) -> None:
    folder = ready(ONE)
    together = with_text(folder, ONE, runs=tmp_path / "two")
    path = written((folder, tmp_path), together)
    process = start(path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    alone = with_text(folder, ONE, runs=tmp_path / "one")
    train.run(alone)
    ends = [kept(run_of(made)).lora for made in (together, alone)]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-2, atol=1e-4)
