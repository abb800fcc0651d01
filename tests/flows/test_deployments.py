from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.automations import Automation
from ruamel.yaml import YAML

from stages import pipeline

ROOT = Path(__file__).parents[2]


def read(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(ROOT / name)


DEPLOYMENTS = [
    pytest.param(found, id=f"{name}:{found['entrypoint'].rpartition('.')[2]}/{found['name']}")
    for name in ("prefect.yaml", "deploy/containers.yaml")
    for found in read(name)["deployments"]
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_deployment_names_a_flow_that_takes_its_parameters(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow)
    given = flow.validate_parameters(deployment["parameters"])
    assert pipeline.load_recipe(ROOT / given["config"])


def test_every_stage_and_retraining_has_its_deployment() -> None:
    found = {(d["entrypoint"].rpartition(".")[2], d["name"]) for d in read("prefect.yaml")["deployments"]}
    stages = ("train_lora", "ingest", "precompute_latents", "precompute_text", "train", "evaluate")
    assert found >= {(name, "manual") for name in stages}
    assert found >= {("retrain", "nightly"), ("retrain", "on-new-data")}


def test_the_automations_are_what_prefect_takes() -> None:
    names = [Automation(**described).name for described in read("deploy/automations.yaml")["automations"]]
    assert names == ["eridiff-crash-zombies"]
