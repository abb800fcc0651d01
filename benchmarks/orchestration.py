"""What Prefect adds: to a run in one process, and to a night on which nothing changed.

`python -m benchmarks.orchestration [RECIPE]` finishes the recipe (the demo by default) and then times its
flow, which has nothing left to do, beside `eridiff run`: the difference is Prefect's. Limits: 15 s with a
fresh PREFECT_HOME, 10 s later. Then it serves a dataset of 10,000 images that was judged already, and times
a retraining from its schedule to Completed. Limit: 15 s.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from eridiff.registry import Verdict
from stages import pipeline, publish
from stages.dataset import current_snapshot
from stages.drain import call, healthy

FRESH_LIMIT_S, LATER_LIMIT_S, NIGHT_LIMIT_S = 15.0, 10.0, 15.0
NUM_DEPLOYMENTS = 9
RECIPE = """\
name: night
model: {{family: sdxl, base: "builtin:demo-sdxl"}}
datasets: [{{folder_path: {folder}/images, resolution: 64, default_caption: a tile}}]
storage: {{data: {folder}/data, runs: {folder}/runs, registry: {folder}/registry}}
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="configs/demo-sdxl.yaml")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    subprocess.run([sys.executable, "-m", "stages.cli", "run", options.recipe], check=True)
    with tempfile.TemporaryDirectory() as folder:
        found = overhead(options.recipe, Path(folder) / "home", options.runs)
        found |= {"night_s": night(Path(folder), options.images, options.runs)}
    if options.json:
        print(json.dumps(found))
        return
    print(f"without Prefect {found['plain_s']:.1f} s")
    print(f"Prefect adds    {found['fresh_s']:.1f} s with a fresh home (limit {FRESH_LIMIT_S:g})")
    print(f"                {found['later_s']:.1f} s later (limit {LATER_LIMIT_S:g})")
    about = f"a night without a change, {options.images} images"
    print(f"{about}: {found['night_s']:.1f} s (limit {NIGHT_LIMIT_S:g})")


def overhead(recipe: str, home: Path, runs: int) -> dict[str, float]:
    """Seconds of a finished recipe without Prefect, and what its flow takes more; the fastest of some."""
    environment = {**os.environ, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"}
    environment.pop("PREFECT_API_URL", None)
    plain = min(timed(["stages.cli", "run", recipe], environment) for _ in range(runs))
    fresh = timed(["flows.train_lora", recipe], environment)
    later = min(timed(["flows.train_lora", recipe], environment) for _ in range(runs))
    return {"plain_s": plain, "fresh_s": fresh - plain, "later_s": later - plain}


def timed(module: list[str], environment: Mapping[str, str]) -> float:
    """Seconds of wall time of a module run as a program."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", *module], env=environment, check=True, capture_output=True)
    return time.monotonic() - started


def night(folder: Path, count: int, runs: int) -> float:
    """Seconds from schedule to Completed of a retraining that finds nothing new: the fastest of some."""
    config = judged_dataset(folder, count)
    with served(folder) as url:
        deployment = call(url, "/deployments/name/retrain/nightly")["id"]
        return min(retraining_s(url, deployment, config) for _ in range(runs))


def judged_dataset(folder: Path, count: int) -> Path:
    """A recipe whose images were ingested and whose LoRA was judged, without training one."""
    (folder / "images").mkdir()
    for number in range(count):
        Image.new("RGB", (64, 64), (number % 256, number // 256, 90)).save(
            folder / "images" / f"{number}.png"
        )
    config = folder / "night.yaml"
    config.write_text(RECIPE.format(folder=folder))
    recipe = pipeline.load_recipe(config)
    pipeline.run_stage("ingest", recipe)
    source = folder / "lora.safetensors"
    save_file({"stands.for.a.lora": np.zeros(1, np.float32)}, source)
    snapshot = current_snapshot(recipe).id
    verdict = Verdict("promoted", "", publish.made_of(recipe), "run", snapshot, str(source), 0.5, 0.6)
    publish.registry_of(recipe).add(verdict, keep=1, serve=None)
    return config


def retraining_s(url: str, deployment: str, config: Path) -> float:
    """Seconds of one run, by the server's own clock."""
    parameters = {"parameters": {"config": str(config)}}
    run = call(url, f"/deployments/{deployment}/create_flow_run", parameters)["id"]
    while (found := call(url, f"/flow_runs/{run}"))["end_time"] is None:
        time.sleep(0.2)
    if not found["state"]["message"].startswith("No change"):
        raise RuntimeError(f"the retraining ended as {found['state']}")
    ended, scheduled = (datetime.fromisoformat(found[name]) for name in ("end_time", "expected_start_time"))
    return (ended - scheduled).total_seconds()


@contextmanager
def served(folder: Path, port: int = 4299) -> Iterator[str]:
    """The API of an `eridiff serve` with a home of its own."""
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(folder / "served")}
    command = [sys.executable, "-m", "stages.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (healthy(url) and call(url, "/deployments/count", {}) >= NUM_DEPLOYMENTS):
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    main()
