"""A base with a LoRA merged in: exactly the sum, in every layout, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eridiff.errors import ModelError, RecipeError
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.families.checkpoints.loading import load_model
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.merge import merge
from eridiff.recipe import Model
from tests.families.checkpoints import original
from tests.lora.conftest import CPU, Tiny


def adapted(tiny: Tiny) -> Lora:
    """The denoiser everywhere, and a layer of each text encoder that a LoRA may adapt."""
    settings = {"conv": 3} if tiny.family.checkpoint.lora.convolutions else {}
    _, _, lora = tiny.trained(linear=4, linear_alpha=3, targets=".*", **settings)
    layers, random = dict(lora.layers), torch.Generator().manual_seed(3)
    for component in tiny.family.checkpoint.lora.text_encoders:
        encoder = load_model(tiny.base, component, device=CPU, dtype=torch.float32)
        weight = next(
            v for k, v in encoder.state_dict().items() if k.endswith("layers.1.self_attn.k_proj.weight")
        )
        up, down = (torch.randn(size, generator=random) for size in ((len(weight), 2), (2, weight.shape[1])))
        layers[f"{component}.text_model.encoder.layers.1.self_attn.k_proj"] = Adapter(down, up, 1.0)
    return Lora(layers, lora.structure)


def weights(base: Base) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in base.layout.models
        for key, value in load_model(base, name, device=CPU, dtype=torch.float32).state_dict().items()
    }


@pytest.mark.parametrize("form", ["folder", "file"])
def test_the_sum_is_exact_and_the_rest_untouched(tiny: Tiny, form: str, tmp_path: Path) -> None:
    lora, layout = adapted(tiny), tiny.family.checkpoint
    if form == "folder":
        base, out, configs = tiny.base, tmp_path / "merged", None
    else:
        configs = tmp_path / "configs"
        original.write_configs(tiny.folder, layout, configs)
        original.write_all_in_one(tiny.folder, layout, tmp_path / "base.safetensors")
        source = Model(family=layout.family, base=str(tmp_path / "base.safetensors"), tokenizers=configs)
        base, out = resolve(source, tiny.family), tmp_path / "merged.safetensors"
    before = weights(base)
    merge(base, lora, out, strength=0.5)
    after = weights(resolve(Model(family=layout.family, base=str(out), tokenizers=configs), tiny.family))
    changes = {f"{name}.weight": adapter.change() for name, adapter in lora.layers.items()}
    assert before.keys() == after.keys()
    seen = 0
    for key, value in before.items():
        component, _, rest = key.partition(".")
        change = changes.get(key, changes.get(f"{component}.text_model.{rest}"))
        wanted = value if change is None else (value.double() + 0.5 * change).float()
        seen += change is not None
        assert torch.equal(after[key], wanted), key
    assert seen == len(changes)


def test_types_are_kept_and_rounding_happens_once(tiny_bases: dict[str, Tiny], tmp_path: Path) -> None:
    tiny = tiny_bases["flux"]
    layout = tiny.family.checkpoint
    original.write_configs(tiny.folder, layout, tmp_path / "configs")
    original.write_all_in_one(tiny.folder, layout, tmp_path / "full.safetensors")
    half = {key: value.bfloat16() for key, value in load_file(tmp_path / "full.safetensors").items()}
    save_file(half, tmp_path / "base.safetensors", {"modelspec.title": "half", "sshs_model_hash": "old"})
    model = Model(family="flux", base=str(tmp_path / "base.safetensors"), tokenizers=tmp_path / "configs")
    _, _, lora = tiny.trained(linear=4, targets="attn")
    merge(resolve(model, tiny.family), lora, tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    key = "double_blocks.0.img_attn.qkv.weight"
    change = torch.cat([lora.layers[f"transformer.transformer_blocks.0.attn.to_{n}"].change() for n in "qkv"])
    wanted = (half[f"model.diffusion_model.{key}"].double() + change).bfloat16()
    assert torch.equal(merged[f"model.diffusion_model.{key}"], wanted)


def test_what_does_not_fit_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    name, adapter = next(iter(lora.layers.items()))
    wide = Adapter(torch.ones(2, 999), torch.ones(3, 2), 2.0)
    with pytest.raises(ModelError, match="other widths"):
        merge(tiny.base, Lora({name: wide}, lora.structure), tmp_path / "out")
    with pytest.raises(ModelError, match="base lacks"):
        merge(tiny.base, Lora({f"{name}.more": adapter}, lora.structure), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="already"):
        merge(tiny.base, lora, tmp_path / "out")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_that_is_no_number_is_refused(tiny: Tiny, strength: float, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    with pytest.raises(RecipeError, match="finite"):
        merge(tiny.base, lora, tmp_path / "out", strength=strength)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e5m2])
def test_sums_beyond_the_type_are_refused(tiny: Tiny, dtype: torch.dtype, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    layout, held = tiny.family.checkpoint, tmp_path / "held"
    original.write_configs(tiny.folder, layout, held / "configs")
    original.write_all_in_one(tiny.folder, layout, held / "full.safetensors")
    narrow = {key: value.to(dtype) for key, value in load_file(held / "full.safetensors").items()}
    save_file(narrow, held / "base.safetensors")
    model = Model(family=layout.family, base=str(held / "base.safetensors"), tokenizers=held / "configs")
    out = tmp_path / "out" / "merged.safetensors"
    out.parent.mkdir()
    with pytest.raises(ModelError, match="not finite") as refused:
        merge(resolve(model, tiny.family), lora, out, strength=1e300)
    named = str(refused.value.where).removeprefix(f"{held / 'base.safetensors'}: ")
    assert named in narrow
    assert list(out.parent.iterdir()) == []


def test_a_folder_of_sums_beyond_the_type_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    with pytest.raises(ModelError, match="not finite"):
        merge(tiny.base, lora, tmp_path / "out", strength=1e300)
    assert list(tmp_path.iterdir()) == []
