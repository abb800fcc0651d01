"""What a LoRA file says about itself."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora.export import resolve_format, write_lora
from eridiff.lora.metadata import carried, describe, describe_data
from eridiff.lora.read import read_lora
from eridiff.recipe import Recipe
from eridiff.store.snapshots import Sample
from tests.lora.conftest import Tiny

MADE = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
ARCHITECTURES = {
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "networks.lora"),
    "sd35": ("sd3.5_medium", "stable-diffusion-v3.5-medium/lora", "networks.lora_sd3"),
    "flux": ("flux1", "Flux.1-dev/lora", "networks.lora_flux"),
}


def recipe_of(tiny: Tiny) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "mine",
            "trigger_word": "in glow style",
            "model": {"family": tiny.family.name, "base": str(tiny.folder)},
            "datasets": [{"folder_path": "images", "resolution": 512}],
            "network": {"linear": 4, "linear_alpha": 2, "targets": "attn"},
        }
    )


def described(tiny: Tiny, path: Path) -> dict[str, str]:
    recipe = recipe_of(tiny)
    _, _, lora = tiny.trained(linear=4, linear_alpha=2, targets="attn")
    file_format = resolve_format("auto", tiny.family)
    metadata = describe(
        lora,
        recipe,
        tiny.family,
        file_format=file_format,
        step=250,
        made=MADE,
        provenance={"snapshot": "abc", "base": "def"},
    )
    write_lora(path, lora, tiny.family, file_format=file_format, dtype=torch.float16, metadata=metadata)
    return dict(read_header(path).metadata)


def test_programs_find_the_fields_that_they_go_by(tiny: Tiny, tmp_path: Path) -> None:
    found = described(tiny, tmp_path / "mine.safetensors")
    version, architecture, module = ARCHITECTURES[tiny.family.name]
    assert found["ss_base_model_version"] == version
    assert found["modelspec.architecture"] == architecture
    assert found["ss_network_module"] == module
    assert (found["ss_network_dim"], float(found["ss_network_alpha"])) == ("4", 2.0)
    assert json.loads(found["ss_network_args"]) == {}
    assert found["ss_v2"] == "False"
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert re.fullmatch(r"\d+x\d+", found["modelspec.resolution"])
    assert datetime.fromisoformat(found["modelspec.date"]) == MADE
    assert found["modelspec.trigger_phrase"] == "in glow style"
    assert found["ss_output_name"] == found["modelspec.title"] == "mine"
    assert (found["eridiff.snapshot"], found["eridiff.base"], found["eridiff.steps"]) == ("abc", "def", "250")
    assert all(isinstance(value, str) for value in found.values())


def test_hashes_are_those_that_other_programs_compute(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    found, data = described(tiny, path), path.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert found["sshs_model_hash"] == digest
    assert found["modelspec.hash_sha256"] == f"0x{digest}"
    assert re.fullmatch(r"[0-9a-f]{8}", found["sshs_legacy_hash"])


def test_the_data_are_described_as_kohya_does() -> None:
    def sample(number: int, *captions: str, repeats: int = 1, dataset: int = 0) -> Sample:
        return Sample(
            f"id{number}", f"content{number}", captions, 512, 512, 512, 512, 0, 0, 512, 448, False, "train",
            repeats, "shard", "source", dataset,
        )  # fmt: skip

    samples = [
        sample(1, "a cat, red"), sample(2, "a cat", "red"), sample(3, "dog", repeats=3, dataset=1),
    ]  # fmt: skip
    found = describe_data(samples, ["cats", "dogs"])
    assert found["ss_num_train_images"] == "5"
    assert json.loads(found["ss_tag_frequency"]) == {"cats": {"a cat": 2, "red": 2}, "dogs": {"dog": 1}}
    assert json.loads(found["ss_dataset_dirs"])["dogs"] == {"n_repeats": 3, "img_count": 1}
    assert json.loads(found["ss_bucket_info"])["buckets"]["0"] == {"resolution": [512, 448], "count": 3}


@pytest.mark.parametrize("file_format", ["kohya", "diffusers"])
def test_exported_metadata_leave_out_what_is_no_longer_true(
    tiny: Tiny, file_format: str, tmp_path: Path
) -> None:
    before = described(tiny, tmp_path / "mine.safetensors")
    lora = read_lora(tmp_path / "mine.safetensors", tiny.family)
    after = carried(lora, tiny.family, file_format)  # type: ignore[arg-type]
    assert "sshs_model_hash" not in after
    assert after["eridiff.snapshot"] == before["eridiff.snapshot"]
    assert (after["modelspec.implementation"] == "diffusers") == (file_format == "diffusers")
