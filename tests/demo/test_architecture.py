from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from eridiff.demo.architecture import LAYOUTS, save_random_base

pytestmark = pytest.mark.filterwarnings(
    # raised by the Euler scheduler's set_timesteps
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

PROMPT = "a large red circle above a small blue star on a cream background"


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("base") / request.param
    save_random_base(request.param, folder)
    return request.param, folder


def run(pipeline: DiffusionPipeline, **arguments: object) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        height=64, width=64, num_inference_steps=1, generator=generator, output_type="pt", **arguments
    ).images
    return torch.as_tensor(images)


def test_the_familys_pipeline_loads_the_folder_and_follows_prompt(base: tuple[str, Path]) -> None:
    family, folder = base
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline).__name__ == LAYOUTS[family].pipeline
    one, other = (run(pipeline, prompt=prompt) for prompt in (PROMPT, PROMPT.replace("star", "heart")))
    assert one.isfinite().all()
    assert one.shape == (1, 3, 64, 64)
    assert not torch.equal(one, other)


def test_same_seed_gives_the_same_bytes_and_global_randomness_is_untouched(
    base: tuple[str, Path], tmp_path: Path
) -> None:
    family, folder = base
    state = torch.random.get_rng_state()
    save_random_base(family, tmp_path / "same")
    save_random_base(family, tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / path).read_bytes() == (tmp_path / "same" / path).read_bytes() for path in paths)
    weights = [path for path in paths if path.suffix == ".safetensors"]
    assert all((folder / path).read_bytes() != (tmp_path / "other" / path).read_bytes() for path in weights)


def test_no_weight_of_the_denoiser_is_all_zero(base: tuple[str, Path]) -> None:
    family, folder = base
    weights = load_file(folder / LAYOUTS[family].denoiser / "diffusion_pytorch_model.safetensors")
    assert [name for name, weight in weights.items() if not weight.any()] == []


def test_index_names_every_folder(base: tuple[str, Path]) -> None:
    _, folder = base
    index = json.loads((folder / "model_index.json").read_text())
    named = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    assert named == {path.name for path in folder.iterdir() if path.is_dir()}
