"""What a server needs besides deployments: work pool, GPU limits, automations. Run it as often as you like.

`python -m flows.setup --pool eridiff-local --gpu-limit gpu-$(hostname) --gpus 1`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML

AUTOMATIONS = Path(__file__).parents[1] / "deploy" / "automations.yaml"


def set_up(*, pool: str, gpu_limit: str | None, gpus: int) -> None:
    """Creates what is missing and brings limits and automations up to date.

    Args:
        pool: name of the process pool.
        gpu_limit: name of this machine's concurrency limit; None where it has no GPU.
        gpus: jobs at a time under that limit.
    """
    with get_client(sync_client=True) as client:
        _ensure_pool(client, pool)
        if gpu_limit:
            client.upsert_global_concurrency_limit_by_name(gpu_limit, gpus)
    for described in YAML(typ="safe").load(AUTOMATIONS)["automations"]:
        _ensure_automation(described)


def _ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))


def _ensure_automation(described: dict[str, Any]) -> None:
    automation = Automation(**described)
    try:
        automation.id = cast(Automation, Automation.read(name=automation.name)).id
    except ValueError:  # there is none of that name
        automation.create()
    else:
        automation.update()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.setup", description="Pool, limits, automations.")
    parser.add_argument("--pool", default="eridiff-local")
    parser.add_argument(
        "--gpu-limit", help="name of this machine's GPU limit, the worker's ERIDIFF_GPU_LIMIT"
    )
    parser.add_argument("--gpus", type=int, default=1)
    chosen = parser.parse_args()
    set_up(pool=chosen.pool, gpu_limit=chosen.gpu_limit, gpus=chosen.gpus)
