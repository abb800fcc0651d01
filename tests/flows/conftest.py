"""A Prefect server for the tests of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows import tasks
from stages import pipeline, precompute
from tests.flows.doubles import RECIPE, Doubles


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def doubles(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    config = tmp_path / "double.yaml"
    config.write_text(RECIPE.format(folder=tmp_path))
    made = Doubles(str(config), tmp_path)
    monkeypatch.setattr(pipeline, "stage", made.module)
    monkeypatch.setattr(precompute, "run", made.run_part)
    monkeypatch.setattr("flows.artifacts.show_stage", lambda *_: None)
    monkeypatch.setattr(tasks.ingest, "retry_delay_seconds", [0.0, 0.0])
    return made
