"""LoRA files: written, and read by ourselves, by a model of ComfyUI's rules, and by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eridiff.errors import ModelError
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.export import structure_metadata, tensors, write_lora
from eridiff.lora.read import read_lora
from eridiff.lora.verify import rehearse, verify
from tests.lora.conftest import Tiny

FORMATS = ("kohya", "diffusers")
EVERYTHING = {"linear": 4, "linear_alpha": 3, "targets": ".*", "ranks": {".*to_q": 6}}


def network(tiny: Tiny, **settings: object) -> dict[str, object]:
    return settings | ({"conv": 3} if tiny.family.checkpoint.lora.convolutions else {})


def save(path: Path, lora: Lora, tiny: Tiny, file_format: Format, dtype: torch.dtype = torch.float32) -> None:
    write_lora(
        path, lora, tiny.family, file_format=file_format, dtype=dtype, metadata=structure_metadata(lora)
    )


def assert_equal_change(found: Lora, wanted: Lora) -> None:
    assert found.layers.keys() == wanted.layers.keys()
    for name, adapter in wanted.layers.items():
        torch.testing.assert_close(found.layers[name].change(), adapter.change(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_is_written_is_read_back_with_its_ranks(tiny: Tiny, file_format: Format, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(**network(tiny, **EVERYTHING))
    save(tmp_path / "lora.safetensors", lora, tiny, file_format)
    found = read_lora(tmp_path / "lora.safetensors", tiny.family)
    assert_equal_change(found, lora)
    assert {n: a.rank for n, a in found.layers.items()} == {n: a.rank for n, a in lora.layers.items()}
    assert found.structure == lora.structure


def test_formats_turn_into_each_other(tiny: Tiny, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(**network(tiny, **EVERYTHING))
    first, second, third = (tmp_path / f"{number}.safetensors" for number in range(3))
    save(first, lora, tiny, "kohya")
    save(second, read_lora(first, tiny.family), tiny, "diffusers")
    save(third, read_lora(second, tiny.family), tiny, "kohya")
    assert_equal_change(read_lora(third, tiny.family), lora)
    assert {key: value.shape for key, value in load_file(first).items()} == {
        key: value.shape for key, value in load_file(third).items()
    }


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("targets", [r".*\.(to_v|proj_mlp)", r".*\.(to_q|to_v|add_k_proj|ff\.net\.2)"])
def test_partly_trained_stacks_are_exact(
    tiny: Tiny, file_format: Format, targets: str, tmp_path: Path
) -> None:
    denoiser, _, lora = tiny.trained(linear=4, linear_alpha=6, targets=targets)
    path = tmp_path / "lora.safetensors"
    save(path, lora, tiny, file_format)
    assert_equal_change(read_lora(path, tiny.family), lora)
    assert verify(path, lora, denoiser, tiny.family, file_format=file_format)


@pytest.mark.parametrize(
    ("file_format", "dtype"),
    [("kohya", torch.float16), ("diffusers", torch.bfloat16), ("diffusers", torch.float32)],
)
def test_the_gate_lets_good_files_pass(
    tiny: Tiny, file_format: Format, dtype: torch.dtype, tmp_path: Path
) -> None:
    denoiser, _, lora = tiny.trained(**network(tiny, **EVERYTHING))
    save(tmp_path / "lora.safetensors", lora, tiny, file_format, dtype)
    readers = verify(tmp_path / "lora.safetensors", lora, denoiser, tiny.family, file_format=file_format)
    assert set(readers) <= set(tiny.family.checkpoint.lora.readers[file_format])
    assert readers


def test_the_default_format_loads_in_comfyui_and_diffusers(tiny: Tiny) -> None:
    names = tiny.family.checkpoint.lora
    assert names.readers[names.default] == ("comfyui", "diffusers")
    denoiser, injected, _ = tiny.trained(linear=4)
    assert "comfyui" in rehearse(injected, denoiser, tiny.family, file_format=names.default)


def _scaled_alpha(state: dict[str, torch.Tensor]) -> None:
    alphas = [key for key in state if key.endswith(".alpha")]
    for key in alphas:
        state[key] = state[key] / 3  # as sd-scripts does to stacks
    if not alphas:
        key = next(key for key in state if key.endswith("lora_B.weight"))
        state[key] = state[key] / 3


def _swapped_rows(state: dict[str, torch.Tensor]) -> None:
    key = next(key for key in state if key.endswith(("lora_up.weight", "lora_B.weight")))
    state[key] = state[key].roll(state[key].shape[0] // 2, dims=0).contiguous()


def _lost_layer(state: dict[str, torch.Tensor]) -> None:
    name = next(key for key in state if key.endswith(("lora_up.weight", "lora_B.weight")))
    for key in [key for key in state if key.startswith(name.rpartition(".lora_")[0] + ".")]:
        del state[key]


@pytest.mark.parametrize("fault", [_scaled_alpha, _swapped_rows, _lost_layer])
@pytest.mark.parametrize("file_format", FORMATS)
def test_the_gate_stops_files_that_lost_something(
    tiny: Tiny, file_format: Format, fault: object, tmp_path: Path
) -> None:
    denoiser, _, lora = tiny.trained(linear=4, targets="attn")
    state = tensors(lora, tiny.family, file_format=file_format, dtype=torch.float32)
    fault(state)  # type: ignore[operator]
    save_file(state, tmp_path / "lora.safetensors", structure_metadata(lora))
    with pytest.raises(ModelError, match="is not what was trained"):
        verify(tmp_path / "lora.safetensors", lora, denoiser, tiny.family, file_format=file_format)


def test_equal_tensors_make_equal_bytes(tiny: Tiny, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    for name in ("a", "b"):
        save(tmp_path / name, lora, tiny, "kohya", torch.float16)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_that_a_type_cannot_hold_are_an_error(tiny: Tiny, dtype: torch.dtype) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    name, adapter = next(iter(lora.layers.items()))
    up = adapter.up.detach().clone()
    up[0, 0] = 1e6 if dtype == torch.float16 else float("nan")
    broken = Lora({**lora.layers, name: Adapter(adapter.down, up, adapter.alpha)}, lora.structure)
    with pytest.raises(ModelError, match=r"too large|not finite"):
        tensors(broken, tiny.family, file_format="kohya", dtype=dtype)
