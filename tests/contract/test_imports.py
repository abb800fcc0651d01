"""Who may import whom: the rows of the house, kept by walking the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "diffusers", "transformers", "peft"}
FAMILY_NAMES = ("sdxl", "sd35", "flux")

RULES = {
    "eridiff/errors.py": {"eridiff"} | HEAVY,
    "eridiff/recipe": HEAVY | {"eridiff.store", "eridiff.families", "stages", "flows", "prefect"},
    "eridiff/store": HEAVY | {"eridiff.recipe", "eridiff.families", "stages", "flows", "prefect"},
    "eridiff/diffusion": {
        "eridiff.store",
        "eridiff.recipe",
        "eridiff.families",
        "stages",
        "flows",
        "prefect",
    },
    "eridiff/images": {"eridiff.recipe", "eridiff.families", "stages", "flows", "prefect"},
    "eridiff/encoding": {
        "eridiff.training",
        "eridiff.evaluation",
        "eridiff.lora",
        "stages",
        "flows",
        "prefect",
    },
    "eridiff/families": {"eridiff.store", "eridiff.training", "eridiff.lora", "stages", "flows", "prefect"},
    "eridiff/lora": {"eridiff.training", "eridiff.evaluation", "stages", "flows", "prefect"},
    "eridiff/training": {"eridiff.evaluation", "stages", "flows", "prefect"},
    "eridiff/evaluation": {"stages", "flows", "prefect"},
    "stages": {"flows", "prefect"},
    "flows": HEAVY,
}
"""What the modules of a place never import, anywhere in their text."""


def modules(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(nodes: list[ast.stmt] | ast.AST) -> set[str]:
    trees = nodes if isinstance(nodes, list) else [nodes]
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def hits(names: set[str], forbidden: set[str]) -> set[str]:
    return {name for name in names for bad in forbidden if name == bad or name.startswith(bad + ".")}


@pytest.mark.parametrize("place", RULES)
def test_nobody_imports_what_is_not_theirs(place: str) -> None:
    found = {
        str(path.relative_to(ROOT)): bad
        for path in modules(place)
        if (bad := hits(imported(ast.parse(path.read_text())), RULES[place]))
    }
    assert not found


def test_stages_do_not_import_each_other() -> None:
    names = {"stages.ingest", "stages.precompute", "stages.train", "stages.evaluate"}
    for name in names:
        path = ROOT / (name.replace(".", "/") + ".py")
        assert not hits(imported(ast.parse(path.read_text())), names - {name}), path


def test_families_are_named_only_at_home() -> None:
    found = []
    homes = ("eridiff/families/", "eridiff/demo/", "eridiff/recipe/")
    for path in [*modules("eridiff"), *modules("stages"), *modules("flows")]:
        place = str(path.relative_to(ROOT))
        if place.startswith(homes):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in FAMILY_NAMES:
                found.append(f"{place}:{node.lineno} {node.value}")
    assert not found


COMMANDS = {
    "help": "import stages.cli; stages.cli.app",
    "families": "from eridiff import families; [families.get(name, {}) for name in families.names()]",
    "stages": "import stages.ingest, stages.precompute, stages.train, stages.evaluate",
    "store": "import eridiff.store.parts, eridiff.store.snapshots, eridiff.store.runs",
}


@pytest.mark.parametrize("what", COMMANDS)
def test_looking_loads_no_tensor_library(what: str) -> None:
    check = f"import sys; {COMMANDS[what]}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
