"""`eridiff inspect`, `export` and `merge`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.families.checkpoints.base import resolve
from eridiff.lora.export import structure_metadata, write_lora
from eridiff.lora.headers import set_metadata
from eridiff.lora.inject import inject, lora_state
from eridiff.lora.read import read_lora
from eridiff.recipe import Model, Network
from stages import cli

PUBLISHED = Path(__file__).parents[3] / "shared" / "layouts"
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    with pytest.raises(SystemExit) as done:
        cli.main([*map(str, arguments), "--json"])
    assert done.value.code == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def ended(*arguments: object) -> object:
    with pytest.raises(SystemExit) as done:
        cli.main([*map(str, arguments)])
    return done.value.code


def recipe_of(family: str, folder: Path) -> Path:
    """A recipe whose base is `base` in a folder."""
    path = folder / "recipe.yaml"
    model = f"{{family: {family}, base: {folder / 'base'}}}"
    path.write_text(f"name: x\nmodel: {model}\ndatasets: [{{folder_path: {folder}}}]\n")
    return path


def sparse(path: Path, layout: Path) -> Path:
    """A file with a published file's header and no blocks on disk."""
    fields, end = {"__metadata__": {"modelspec.title": "published"}}, 0
    for key, (dtype, shape) in json.loads(layout.read_text()).items():
        stop = end + math.prod(shape) * BYTES[dtype]
        fields[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, stop]}
        end = stop
    text = json.dumps(fields).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize(
    ("name", "family", "variant", "parts"),
    [
        ("sdxl_base_allinone", "sdxl", "base", {"transformer", "vae", "clip_l", "clip_g"}),
        ("sd35_medium_mmdit_vae", "sd35", "3.5-medium", {"transformer", "vae"}),
        ("sd35_large_mmdit_vae", "sd35", "3.5-large", {"transformer", "vae"}),
        ("sd35_medium_allinone", "sd35", "3.5-medium", {"transformer", "vae", "clip_l", "clip_g", "t5xxl"}),
        ("sd35_large_allinone", "sd35", "3.5-large", {"transformer", "vae", "clip_l", "clip_g", "t5xxl"}),
        (
            "sd35_medium_comfy_checkpointsave",
            "sd35",
            "3.5-medium",
            {"transformer", "vae", "clip_l", "clip_g", "t5xxl"},
        ),
        ("flux1_dev", "flux", "dev", {"transformer"}),
        ("flux1_dev_comfy_checkpointsave", "flux", "dev", {"transformer", "vae", "clip_l", "t5xxl"}),
        ("flux_ae", "sdxl or sd35 or flux", None, {"vae"}),
        ("clip_l", "sdxl or sd35 or flux", None, {"clip_l"}),
        ("clip_g", "sdxl or sd35", None, {"clip_g"}),
        ("t5xxl_fp16", "sd35 or flux", None, {"t5xxl"}),
    ],
)
def test_published_files_are_recognised(
    name: str,
    family: str,
    variant: str | None,
    parts: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not PUBLISHED.is_dir():
        pytest.skip("the key lists of published files are not beside the repository")
    found = run(capsys, "inspect", sparse(tmp_path / "model.safetensors", PUBLISHED / f"{name}.json"))
    assert (found["family"], found["variant"]) == (family, variant)
    assert {part["part"] for part in found["parts"]} == parts
    assert found["metadata"] == {"modelspec.title": "published"}
    listed = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert sum(part["tensors"] for part in found["parts"]) + len(found["unknown_keys"]) == len(listed)


@pytest.fixture(params=families.names())
def lora_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    family, folder = families.get(request.param), tmp_path / "base"
    save_random_base(request.param, folder)
    base = resolve(Model(family=request.param, base=str(folder)), family)
    denoiser = family.load_denoiser(base, device=torch.device("cpu"), dtype=torch.float32)
    injected = inject(denoiser, Network(linear=4, linear_alpha=2, targets="attn"), family, seed=1)
    with torch.no_grad():
        for parameter in lora_state(denoiser).values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    lora = injected.lora(lora_state(denoiser))
    metadata = structure_metadata(lora) | {"modelspec.title": "mine", "eridiff.snapshot": "abc"}
    path = tmp_path / "mine.safetensors"
    write_lora(path, lora, family, file_format="kohya", dtype=torch.bfloat16, metadata=metadata)
    return path


def test_a_lora_is_described(lora_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "inspect", lora_file)
    assert found["what"] == "lora"
    assert found["format"] == "kohya"
    assert set(found["scales"]) == {"0.5"}
    assert found["metadata"]["modelspec.title"] == "mine"
    assert found["provenance"]["snapshot"] == "abc"
    assert sum(found["ranks"].values()) == sum(found["targets"].values()) == sum(found["modules"].values())


def test_export_there_and_back_keeps_the_effect(
    lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = families.get(run(capsys, "inspect", lora_file)["family"])
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    run(capsys, "export", lora_file, "--out", there, "--format", "diffusers", "--dtype", "fp32")
    run(capsys, "export", there, "--out", back, "--format", "kohya")
    first, last = read_lora(lora_file, family), read_lora(back, family)
    assert load_file(back).keys() == load_file(lora_file).keys()
    assert first.layers.keys() == last.layers.keys()
    for name, adapter in first.layers.items():
        torch.testing.assert_close(last.layers[name].change(), adapter.change(), rtol=1e-6, atol=1e-7)
    assert run(capsys, "inspect", back)["metadata"]["modelspec.title"] == "mine"


def test_merge_writes_a_base_that_loads(
    lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = run(capsys, "inspect", lora_file)["family"]
    found = run(capsys, "merge", recipe_of(name, tmp_path), lora_file, "--out", tmp_path / "merged")
    assert len(found["changed"]) == 1
    assert run(capsys, "inspect", tmp_path / "merged")["family"] == name


@pytest.mark.parametrize("content", [b"", b"GGUF\3\0\0\0" + bytes(99), b"PK\3\4" + bytes(99)])
def test_what_is_no_model_is_an_error(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(SystemExit) as done:
        cli.main(["inspect", str(tmp_path / "x.safetensors")])
    assert done.value.code == 5
    assert "x.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "name"), [("lokr_w1", "LoKr"), ("hada_w1_a", "LoHa"), ("dora_scale", "DoRA")]
)
def test_relatives_of_lora_are_refused_by_name(
    key: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({f"lycoris_x.{key}": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(SystemExit) as done:
        cli.main(["inspect", str(tmp_path / "x.safetensors")])
    assert done.value.code == 5
    assert f"this file holds {name}" in capsys.readouterr().err


def test_a_file_of_other_tensors_is_an_error(tmp_path: Path) -> None:
    save_file({"some.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(SystemExit) as done:
        cli.main(["inspect", str(tmp_path / "x.safetensors")])
    assert done.value.code == 5


def test_inspection_loads_no_torch(lora_file: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom stages.models import inspect\n"
        f"inspect(Path({str(lora_file)!r})); inspect(Path({str(lora_file.parent / 'base')!r}))\n"
        "print(*{'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not loaded.stdout.split()


def test_brackets_in_names_and_metadata_are_shown(
    lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comment = {"ss_training_comment": "[INST] :x: a [bold]cat[/INST]"}
    source, out = tmp_path / "my [v2].safetensors", tmp_path / "out [v3].safetensors"
    set_metadata(lora_file.rename(source), comment)
    assert ended("export", source, "--out", out, "--format", "kohya") == 0
    assert f"lora: {out}\n" in capsys.readouterr().out
    assert ended("inspect", source) == 0
    assert "ss_training_comment: [INST] :x: a [bold]cat[/INST]\n" in capsys.readouterr().out


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf"])
def test_merge_refuses_a_strength_that_is_no_number(
    lora_file: Path, tmp_path: Path, strength: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(run(capsys, "inspect", lora_file)["family"], tmp_path)
    assert ended("merge", recipe, lora_file, "--out", tmp_path / "merged", "--strength", strength) == 2
    assert strength in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
