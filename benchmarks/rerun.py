"""How long the second run of a finished recipe takes, and what it imports.

`python -m benchmarks.rerun [RECIPE]` runs the recipe once (the demo by default), then again as a fresh
process, several times. Limit: 2 s of wall time, with neither torch nor diffusers imported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 2.0
HEAVY = ("torch", "diffusers", "transformers", "peft")
SECOND_RUN = """
import json, sys
from pathlib import Path
from stages import pipeline
reports = list(pipeline.run_all(pipeline.load_recipe(Path(sys.argv[1]))))
heavy = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps({{"done": sum(report.done for report in reports), "imported": heavy}}))
"""


def main() -> None:
    """Runs, reruns, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("configs/demo-sdxl.yaml"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    subprocess.run([sys.executable, "-m", "stages.cli", "run", str(options.recipe)], check=True)
    seconds, result = [], {}
    for _ in range(options.runs):
        started = time.monotonic()
        program = SECOND_RUN.format(heavy=HEAVY)
        done = subprocess.run(
            [sys.executable, "-c", program, str(options.recipe)], capture_output=True, text=True, check=True
        )
        seconds.append(time.monotonic() - started)
        result = json.loads(done.stdout.splitlines()[-1])
    median = statistics.median(seconds)
    row = {"median_s": round(median, 2), "max_s": round(max(seconds), 2), "limit_s": LIMIT_S, **result}
    if options.json:
        print(json.dumps(row))
        return
    print(
        f"second run of {options.recipe}: median {median:.2f} s, slowest {max(seconds):.2f} s "
        f"(limit {LIMIT_S} s); items made {row['done']}; "
        f"tensor libraries imported: {row['imported'] or 'none'}"
    )


if __name__ == "__main__":
    main()
