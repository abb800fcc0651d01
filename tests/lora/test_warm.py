"""Starting from another LoRA file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eridiff.errors import ModelError, RecipeError
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.export import write_lora
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Network
from tests.lora.conftest import Tiny


def save(path: Path, lora: Lora, tiny: Tiny, file_format: Format = "kohya") -> Path:
    write_lora(path, lora, tiny.family, file_format=file_format, dtype=torch.float32, metadata={})
    return path


@pytest.mark.parametrize("file_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("settings", [{"linear": 4, "linear_alpha": 3}, {"linear": 8, "linear_alpha": 2}])
def test_the_change_is_the_files_in_any_rank_that_holds_it(
    tiny: Tiny, file_format: Format, settings: dict[str, int], tmp_path: Path
) -> None:
    _, _, lora = tiny.trained(linear=4, linear_alpha=3, targets="attn")
    path = save(tmp_path / "start.safetensors", lora, tiny, file_format)
    denoiser = tiny.denoiser()
    network = Network(targets="attn-mlp", init_from=path, **settings)
    found = inject(denoiser, network, tiny.family, seed=1).lora(lora_state(denoiser))
    for name, adapter in found.layers.items():
        assert (adapter.rank, adapter.alpha) == (settings["linear"], settings["linear_alpha"])
        wanted = lora.layers[name].change() if name in lora.layers else torch.zeros_like(adapter.change())
        torch.testing.assert_close(adapter.change(), wanted, rtol=1e-5, atol=1e-7)
        assert bool(adapter.down.abs().sum(dim=tuple(range(1, adapter.down.ndim))).all())


def test_what_would_be_lost_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, linear_alpha=3, targets="attn-mlp")
    path = save(tmp_path / "start.safetensors", lora, tiny)
    with pytest.raises(RecipeError, match="higher rank"):
        inject(tiny.denoiser(), Network(linear=2, init_from=path), tiny.family, seed=1)
    with pytest.raises(RecipeError, match="modules that the recipe does not"):
        inject(tiny.denoiser(), Network(linear=4, targets="attn", init_from=path), tiny.family, seed=1)


def test_another_denoisers_file_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    _, _, lora = tiny.trained(linear=4, targets="attn")
    wide = {
        name: Adapter(torch.ones(2, 3 * adapter.down.shape[1]), adapter.up[:, :2], 2.0)
        for name, adapter in lora.layers.items()
    }
    path = save(tmp_path / "start.safetensors", Lora(wide, lora.structure), tiny, "diffusers")
    with pytest.raises(ModelError, match="made for another denoiser"):
        inject(tiny.denoiser(), Network(linear=4, init_from=path), tiny.family, seed=1)
    with pytest.raises(ModelError, match="cannot be read"):
        inject(tiny.denoiser(), Network(init_from=tmp_path / "none"), tiny.family, seed=1)
