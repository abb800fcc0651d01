from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from eridiff.encoding.spaces import latent_space, text_space
from eridiff.errors import RecipeError
from eridiff.store.parts import TensorStore
from flows import fan_out
from flows.train_lora import train_lora
from stages import pipeline
from tests.flows.project import Project, make_base, make_project

ELSEWHERE = {"processes": None, "dask": "prefect_dask", "ray": "prefect_ray"}
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Ray writes nothing to the user's home, and its workers are no slower than the rest on a busy machine."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "sdxl")


def contents(store: TensorStore) -> dict[str, dict[str, bytes]]:
    reader = store.open()
    return {
        key: {name: bytes(tensor.data) for name, tensor in reader.get(key).items()}
        for key in sorted(store.keys())
    }


def stores(project: Project) -> list[TensorStore]:
    recipe = pipeline.load_recipe(project.recipe)
    return [latent_space(recipe).store(), text_space(recipe).store()]


@pytest.mark.slow
@pytest.mark.timeout(900)  # workers load every library on their own
@pytest.mark.parametrize("workers", ELSEWHERE)
def test_parts_run_elsewhere_store_the_same(
    prefect_server: None,
    tmp_path: Path,
    base: Path,
    workers: fan_out.Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = ELSEWHERE[workers]
    if package and not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    alone = make_project(tmp_path / "alone", base, num_images=6)
    for stage in ("ingest", "precompute"):
        pipeline.run_stage(stage, pipeline.load_recipe(alone.recipe))
    shared = make_project(tmp_path / "shared", base, num_images=6)
    train_lora(str(shared.recipe), parts=2, workers=workers, overrides={"train": {"steps": 1}})
    for one, other in zip(stores(alone), stores(shared), strict=True):
        assert contents(one) == contents(other)


def test_a_runner_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fan_out._EXTRAS, "dask", ("absent_package", "Runner"))
    with pytest.raises(RecipeError, match=r"absent_package is not installed[\s\S]*eridiff\[dask\]"):
        fan_out.each_part(None, "", {}, parts=2, workers="dask")  # type: ignore[arg-type]
