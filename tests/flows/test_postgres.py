"""The server on PostgreSQL, as more than one host needs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.project import make_base, make_project
from tests.flows.service import Service, free_port

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture
def database() -> Iterator[str]:
    """The address of a database of one's own; its server refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="eridiff-postgres-"))
    port = free_port()
    as_other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_other:
        shutil.chown(folder, "postgres")

    def call(program: str, *arguments: str) -> None:
        command = [*as_other, str(PROGRAMS and PROGRAMS / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    data = str(folder / "data")
    call("initdb", "--pgdata", data, "--username", "eridiff", "--auth", "trust")
    call(
        "pg_ctl",
        "--pgdata",
        data,
        "--options",
        f"-p {port} -k {folder}",
        "--log",
        str(folder / "log"),
        "-w",
        "start",
    )
    try:
        call("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "eridiff", "prefect")
        yield f"postgresql+asyncpg://eridiff@127.0.0.1:{port}/prefect"
    finally:
        call("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")
        shutil.rmtree(folder)


def test_a_retraining_is_promoted_with_postgres_behind_the_server(database: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", make_base(tmp_path / "base"))
    with Service(tmp_path / "service", {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}) as service:
        service.deploy()
        service.start_worker()
        state = service.finished(service.run("retrain/on-new-data", config=str(project.recipe)))
        assert state["type"] == "COMPLETED"
        assert state["message"].startswith("promoted")
        assert not list((tmp_path / "service" / "prefect").glob("prefect.db"))
    assert (project.root / "served" / "tiny.safetensors").is_file()
