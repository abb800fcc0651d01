"""`eridiff run` from each form of base: the same LoRA comes out, and it says what it was made from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.recipe import Recipe
from eridiff.store.runs import latest
from stages import models, pipeline
from tests.families.checkpoints import original

FORMS = [
    ("sdxl", "all_in_one"),
    ("sdxl", "mixed"),
    ("sd35", "checkpoint_save"),
    ("flux", "parts"),
    ("flux", "hub"),
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def draw_images(folder: Path) -> None:
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (64, 64), colour)
        ImageDraw.Draw(image).ellipse((8 + 4 * number, 8, 50, 50), fill="white")
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a white ellipse on {colour}")


def model_section(form: str, family: str, folder: Path, into: Path) -> dict[str, Any]:
    layout, base = families.get(family).checkpoint, folder / "base"
    if form == "folder":
        return {"base": str(base)}
    if form == "hub":
        repository = into / "models--me--tiny"
        shutil.copytree(base, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        return {"base": "me/tiny"}
    original.write_configs(base, layout, into / "configs")
    if form in ("all_in_one", "checkpoint_save"):
        getattr(original, f"write_{form}")(base, layout, into / "base.safetensors")
        return {"base": str(into / "base.safetensors"), "tokenizers": into / "configs"}
    parts: dict[str, Any] = original.write_parts(base, layout, into / "parts")
    if form == "mixed":
        parts |= {"vae": base / "vae", "clip_l": base / "text_encoder"}
    return {"base": parts, "tokenizers": into / "configs"}


def trained(form: str, family: str, folder: Path, into: Path) -> dict[str, Tensor]:
    into.mkdir()
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"family": family, **model_section(form, family, folder, into)},
            "datasets": [{"folder_path": folder / "images", "resolution": 64}],
            "ingest": {"holdout": 0.0, "bucket_step": 16},
            "precompute": {"text_dtype": "fp32"},
            "network": {"linear": 2},
            "train": {"steps": 2, "dtype": "fp32", "lr": 0.01},
            "save": {"dtype": "fp32"},
            "sample": {"prompts": ["an ellipse"], "width": 64, "height": 64, "sample_steps": 1},
            "storage": {"data": into / "data", "runs": into / "runs"},
            "device": "cpu",
        }
    )
    reports = list(pipeline.run_all(recipe))
    assert [report.stage for report in reports] == list(pipeline.NAMES)
    run = latest(into / "runs" / "tiny")
    assert run is not None
    assert models.inspect(run.lora_file())["family"] == family
    return load_file(run.lora_file())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "form"), FORMS)
def test_every_form_of_base_gives_the_lora_of_the_folder(
    family: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / form))
    save_random_base(family, tmp_path / "base")
    original.with_unit_projection(tmp_path / "base")
    draw_images(tmp_path / "images")
    wanted = trained("folder", family, tmp_path, tmp_path / "plain")
    found = trained(form, family, tmp_path, tmp_path / form)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert any(bool(value.any()) for key, value in wanted.items() if "up" in key or "lora_B" in key)
