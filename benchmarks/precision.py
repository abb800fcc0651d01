"""The hold-out loss of a base, and of a LoRA trained on it, with the base in fewer bits and whole.

`python -m benchmarks.precision --recipe configs/demo-sdxl.yaml --steps 100` runs a recipe's stages once for
each of `model.quantize`, from the same seed and cached tensors, and takes the losses that `eridiff evaluate`
takes: at the same images, noise and times. `base` and `trained` are mean squared errors; `base_percent` and
`trained_percent` say by how much they are higher than those of the whole base, `error_percent` is the
standard error of the last. Any recipe will do whose base is trained; the demo's need no GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, shown
from eridiff.evaluation.holdout import Losses, from_json
from eridiff.evaluation.work import BASE
from eridiff.recipe import Overrides
from eridiff.store.runs import latest
from stages import pipeline

FORMS = ("none", "int8", "nf4", "fp8")
COLUMNS = ("recipe", "quantize", "base", "base_percent", "trained", "trained_percent", "error_percent")


def main() -> None:
    """Prints a row for each precision as it comes, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("configs/demo-sdxl.yaml"))
    parser.add_argument("--quantize", choices=FORMS, action="append", help="beside `none`")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="instead of the recipe's train.dtype")
    parser.add_argument("--folder", type=Path, default=Path("precision"))
    parser.add_argument("--json", action="store_true", help="no table at the end")
    options = parser.parse_args()
    forms = dict.fromkeys(("none", *(options.quantize or FORMS)))
    shown(measured(options, tuple(forms)), COLUMNS, as_table=not options.json)


def measured(options: argparse.Namespace, forms: tuple[str, ...]) -> Iterator[Row]:
    """A row for each of `forms`, the first of which is what the others are compared with."""
    whole: dict[str, Losses] = {}
    for form in forms:
        found = losses(options, form)
        whole = whole or found
        change = found["trained"].change_from(whole["trained"])
        scale = 100 / whole["trained"].mean
        yield {
            "recipe": options.recipe.stem,
            "quantize": form,
            "base": round(found["base"].mean, 6),
            "trained": round(found["trained"].mean, 6),
            "base_percent": round(100 * (found["base"].mean / whole["base"].mean - 1), 3),
            "trained_percent": round(scale * change.mean, 3),
            "error_percent": None if change.error is None else round(scale * change.error, 3),
        }


def losses(options: argparse.Namespace, form: str) -> dict[str, Losses]:
    """Those of the base and of the LoRA at the end, through the product's own stages."""
    changes: Overrides = {
        "model.quantize": form,
        "train.steps": options.steps,
        "sample.prompts": [],
        "storage.data": str(options.folder / "data"),
        "storage.runs": str(options.folder / "runs" / form),
        **({"train.dtype": options.dtype} if options.dtype else {}),
    }
    recipe = pipeline.load_recipe(options.recipe, changes)
    for report in pipeline.run_all(recipe):
        print(json.dumps(report.as_dict()), flush=True)
    run = latest(recipe.storage.runs / recipe.name)
    assert run is not None
    subjects = json.loads((run.evaluation / "validation.json").read_text())["subjects"]
    labels = {BASE: "base", run.read_seal()["lora_tensors"]: "trained"}
    found = {labels[key]: from_json(entry) for key, entry in subjects.items() if key in labels}
    assert found.keys() == {"base", "trained"}
    return found


if __name__ == "__main__":
    main()
