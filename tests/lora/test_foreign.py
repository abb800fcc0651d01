"""LoRA files as other programs write them, and as nobody should."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eridiff.errors import ModelError
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.export import structure_metadata, tensors, write_lora
from eridiff.lora.read import read_lora
from eridiff.lora.resolving import denoiser_links, flat
from tests.lora.conftest import Tiny

PAIRS = [
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_A", ".lora_B"),
]


def lora_of(tiny: Tiny) -> Lora:
    return tiny.trained(linear=4, linear_alpha=2, targets="all")[2]


def assert_reads(path: Path, tiny: Tiny, wanted: Lora) -> None:
    found = read_lora(path, tiny.family, structure=wanted.structure)
    assert found.layers.keys() == wanted.layers.keys()
    for name, adapter in wanted.layers.items():
        torch.testing.assert_close(found.layers[name].change(), adapter.change(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_way_of_writing_a_pair_is_read(tiny: Tiny, pair: tuple[str, str], tmp_path: Path) -> None:
    lora, state = lora_of(tiny), {}
    for name, adapter in lora.layers.items():
        state[name + pair[0]], state[name + pair[1]] = adapter.down.contiguous(), adapter.up.contiguous()
        state[f"{name}.alpha"] = torch.tensor(adapter.alpha)
    save_file(state, tmp_path / "lora.safetensors")
    assert_reads(tmp_path / "lora.safetensors", tiny, lora)


@pytest.mark.parametrize("start", ["", "base_model.model.", "lora_unet_", "lora_transformer_", "lycoris_"])
def test_every_prefix_of_diffusers_names_is_read(tiny: Tiny, start: str, tmp_path: Path) -> None:
    lora, state = lora_of(tiny), {}
    for name, adapter in lora.layers.items():
        module = name.removeprefix(f"{tiny.family.checkpoint.denoiser}.")
        key = start + (flat(module) if start.endswith("_") else module)
        state |= {
            f"{key}.lora_down.weight": adapter.down.contiguous(),
            f"{key}.lora_up.weight": adapter.up.contiguous(),
            f"{key}.alpha": torch.tensor(adapter.alpha),
        }
    save_file(state, tmp_path / "lora.safetensors")
    assert_reads(tmp_path / "lora.safetensors", tiny, lora)


@pytest.mark.parametrize("start", ["diffusion_model.", "model.diffusion_model."])
def test_original_names_are_read(tiny: Tiny, start: str, tmp_path: Path) -> None:
    lora = lora_of(tiny)
    kohya = tensors(lora, tiny.family, file_format="kohya", dtype=torch.float32)
    originals = {
        f"lora_unet_{flat(link.original)}": link.original
        for link in denoiser_links(tiny.family.checkpoint, lora.structure)
    }
    state = {}
    for key, value in kohya.items():
        module, _, ending = key.partition(".")
        state[f"{start}{originals[module]}.{ending}"] = value
    save_file(state, tmp_path / "lora.safetensors")
    assert_reads(tmp_path / "lora.safetensors", tiny, lora)


def test_a_stack_trained_as_one_is_taken_apart_exactly(tiny: Tiny, tmp_path: Path) -> None:
    """As sd-scripts trains it: one `down`, and an `up` that is no diagonal."""
    if tiny.family.checkpoint.lora.default == "kohya" and tiny.family.checkpoint.denoiser == "unet":
        pytest.skip("this family's original weights are not stacked")
    links = [
        link
        for link in denoiser_links(tiny.family.checkpoint, lora_of(tiny).structure)
        if len(link.diffusers) > 1
    ]
    random, denoiser, state, wanted = torch.Generator().manual_seed(1), tiny.denoiser(), {}, {}
    for link in links:
        weights = [denoiser.get_submodule(name).weight for name in link.diffusers]
        down = torch.randn(5, weights[0].shape[1], generator=random)
        up = torch.randn(sum(len(weight) for weight in weights), 5, generator=random)
        key = f"lora_unet_{flat(link.original)}"
        state |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(2.0),
        }
        for name, part in zip(link.diffusers, up.split([len(weight) for weight in weights]), strict=True):
            wanted[f"{tiny.family.checkpoint.denoiser}.{name}"] = Adapter(down, part, 2.0)
    save_file(state, tmp_path / "lora.safetensors")
    assert_reads(tmp_path / "lora.safetensors", tiny, Lora(wanted, lora_of(tiny).structure))


@pytest.mark.parametrize("style", ["kohya", "diffusers", "flattened"])
def test_text_encoders_are_read_with_their_level_put_back(tiny: Tiny, style: str, tmp_path: Path) -> None:
    random, layers = torch.Generator().manual_seed(2), {}
    for component in tiny.family.checkpoint.lora.text_encoders:
        for module in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1"):
            name = f"{component}.text_model.encoder.layers.1.{module}"
            layers[name] = Adapter(
                torch.randn(3, 16, generator=random), torch.randn(16, 3, generator=random), 6.0
            )
    lora = Lora(layers, lora_of(tiny).structure)
    path = tmp_path / "lora.safetensors"
    if style == "flattened":
        state = tensors(lora, tiny.family, file_format="diffusers", dtype=torch.float32)
        save_file({key.replace("text_model.", ""): value for key, value in state.items()}, path)
    else:
        write_lora(path, lora, tiny.family, file_format=style, dtype=torch.float32, metadata={})  # type: ignore[arg-type]
    assert_reads(path, tiny, lora)


def good_state(tiny: Tiny) -> dict[str, Tensor]:
    return tensors(lora_of(tiny), tiny.family, file_format="kohya", dtype=torch.float32)


def first(state: dict[str, Tensor], ending: str) -> str:
    return next(key for key in state if key.endswith(ending))


BROKEN_STATES = {
    "an orphan down": lambda s: s.pop(first(s, "lora_up.weight")),
    "an orphan up": lambda s: s.pop(first(s, "lora_down.weight")),
    "NaN": lambda s: s[first(s, "lora_up.weight")].fill_(float("nan")),
    "infinite alpha": lambda s: s[first(s, ".alpha")].fill_(float("inf")),
    "alpha of two numbers": lambda s: s.update({first(s, ".alpha"): torch.ones(2)}),
    "ranks that differ": lambda s: s.update({first(s, "lora_up.weight"): torch.ones(8, 3)}),
    "another model's layer": lambda s: s.update(
        {
            "lora_unet_other.lora_down.weight": torch.ones(2, 4),
            "lora_unet_other.lora_up.weight": torch.ones(4, 2),
        }
    ),
    "a whole weight": lambda s: s.update({"model.weight": torch.ones(4, 4)}),
    "DoRA": lambda s: s.update({first(s, ".alpha").replace(".alpha", ".dora_scale"): torch.ones(4, 1)}),
    "LoKr": lambda s: s.update({"lora_unet_x.lokr_w1": torch.ones(4, 4)}),
    "nothing": lambda s: s.clear(),
}


@pytest.mark.parametrize("fault", BROKEN_STATES)
def test_broken_states_are_refused(tiny_bases: dict[str, Tiny], fault: str, tmp_path: Path) -> None:
    tiny = tiny_bases["flux"]
    state = {key: value.clone() for key, value in good_state(tiny).items()}
    BROKEN_STATES[fault](state)
    save_file(state, tmp_path / "lora.safetensors", structure_metadata(lora_of(tiny)))
    with pytest.raises(ModelError) as caught:
        read_lora(tmp_path / "lora.safetensors", tiny.family)
    assert "lora.safetensors" in str(caught.value)


class Trap:
    """Raises an alarm when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_alarm, ("unpickled",))


def _alarm(text: str) -> None:
    raise AssertionError(text)


def _header(fields: object, payload: bytes = b"") -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + payload


def _entry(**changes: object) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


BROKEN_FILES = {
    "empty": b"",
    "short": b"\x01\x02",
    "pickle": pickle.dumps(Trap()),
    "old pickle": pickle.dumps({"x": 1}, protocol=2) + bytes(100),
    "zip": b"PK\x03\x04" + bytes(60),
    "gguf": b"GGUF\x03\0\0\0" + bytes(60),
    "header bomb": struct.pack("<Q", 2**62) + b"{}",
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "not JSON": _header(b"{oops"),
    "deep JSON": _header(b"[" * 200_000),
    "a list": _header([1, 2]),
    "a key twice": _header(
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"0",
    ),
    "unknown dtype": _header(_entry(dtype="F7"), bytes(8)),
    "negative shape": _header(_entry(shape=[-2]), bytes(8)),
    "true as a size": _header(_entry(shape=[True, 2]), bytes(8)),
    "wrong length": _header(_entry(shape=[3]), bytes(8)),
    "huge shape": _header(_entry(shape=[2**40, 2**40]), bytes(8)),
    "offsets backwards": _header(_entry(data_offsets=[8, 0]), bytes(8)),
    "offsets outside": _header(_entry(data_offsets=[8, 16]), bytes(8)),
    "cut off": _header(_entry(), bytes(5)),
    "left over": _header(_entry(), bytes(9)),
    "overlap": _header({**_entry(), "y": _entry()["x"]}, bytes(8)),
    "metadata of numbers": _header({"__metadata__": {"a": 1}, **_entry()}, bytes(8)),
    "a structure of text": _header({"__metadata__": {"eridiff.structure": "[[["}, **_entry()}, bytes(8)),
}


@pytest.mark.parametrize("fault", BROKEN_FILES)
def test_broken_files_are_refused_and_nothing_in_them_runs(
    tiny_bases: dict[str, Tiny], fault: str, tmp_path: Path
) -> None:
    (tmp_path / "lora.safetensors").write_bytes(BROKEN_FILES[fault])
    with pytest.raises(ModelError) as caught:
        read_lora(tmp_path / "lora.safetensors", tiny_bases["sdxl"].family)
    assert "lora.safetensors" in str(caught.value)


def test_a_missing_file_is_an_error(tiny_bases: dict[str, Tiny], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_lora(tmp_path / "none.safetensors", tiny_bases["sdxl"].family)
