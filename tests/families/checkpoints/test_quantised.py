"""Quantised bases: float8 is read rightly, the rest refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.errors import ModelError
from eridiff.families.checkpoints.base import resolve
from eridiff.families.checkpoints.loading import load_model
from eridiff.recipe import BaseParts, Model
from tests.families.checkpoints import original

CPU = torch.device("cpu")
FLUX = families.get("flux")


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    save_random_base("flux", tmp_path / "base")
    original.write_configs(tmp_path / "base", FLUX.checkpoint, tmp_path / "configs")
    return original.write_parts(tmp_path / "base", FLUX.checkpoint, tmp_path / "parts")


def load(parts: dict[str, Path], kind: str) -> dict[str, Tensor]:
    configs = parts["transformer"].parent.parent / "configs"
    base = resolve(Model(family="flux", base=BaseParts(**parts), tokenizers=configs), FLUX)
    name = FLUX.checkpoint.component(kind)  # type: ignore[arg-type]
    assert name is not None
    return load_model(base, name, device=CPU, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("kind", ["transformer", "t5xxl"])
def test_scaled_float8_is_multiplied_out(parts: dict[str, Path], kind: str) -> None:
    wanted, state, worst = load(parts, kind), load_file(parts[kind]), {}
    for key in [key for key in state if key.endswith("weight") and state[key].ndim == 2]:
        scale = state[key].abs().max() / 448
        state[key] = (state[key] / scale).to(torch.float8_e4m3fn)
        state[key.removesuffix("weight") + "scale_weight"] = scale
        state[key.removesuffix("weight") + "scale_input"] = torch.tensor(1.0)
        worst[key] = float(scale) * 16
    state["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    save_file(state, parts[kind])
    found = load(parts, kind)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert float((found[key] - value).abs().max()) <= max(worst.values())
    changed = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    assert len(changed) >= len(worst) // 2


def test_plain_float8_keeps_its_values(parts: dict[str, Path]) -> None:
    state = {key: value.to(torch.float8_e5m2) for key, value in load_file(parts["transformer"]).items()}
    save_file(state, parts["transformer"])
    found = load(parts, "transformer")
    assert torch.equal(found["proj_out.weight"], state["final_layer.linear.weight"].float())


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        ("comfy_quant", "ComfyUI"),
        ("weight_scale", "block scales"),
        ("absmax", "bitsandbytes"),
        ("qweight", "Nunchaku"),
    ],
)
def test_other_quantisations_are_refused_by_name(parts: dict[str, Path], ending: str, name: str) -> None:
    state = load_file(parts["transformer"])
    save_file({**state, f"img_in.{ending}": torch.ones(1)}, parts["transformer"])
    with pytest.raises(ModelError, match=name):
        load(parts, "transformer")


@pytest.mark.parametrize(("magic", "name"), [(b"GGUF\3\0\0\0", "GGUF"), (b"PK\3\4", "pickled")])
def test_other_formats_are_refused_by_name(parts: dict[str, Path], magic: bytes, name: str) -> None:
    parts["transformer"].write_bytes(magic + bytes(100))
    with pytest.raises(ModelError, match=name):
        load(parts, "transformer")
