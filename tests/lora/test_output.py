"""With the LoRA file, the base computes what the trained model computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eridiff.errors import ModelError
from eridiff.families.base import Conditioning
from eridiff.families.checkpoints.loranames import Format
from eridiff.families.frozen.keep import Keep
from eridiff.lora.adapters import Lora
from eridiff.lora.export import structure_metadata, write_lora
from eridiff.lora.forward import compute_in_input_precision, join_projections
from eridiff.lora.inject import inject, lora_state
from eridiff.lora.output import check_output
from eridiff.recipe import Network
from tests.lora.conftest import CPU, Tiny, stir


def trained(tiny: Tiny, dtype: torch.dtype) -> tuple[nn.Module, Lora]:
    denoiser = tiny.denoiser(dtype)
    injected = inject(denoiser, Network(linear=4, linear_alpha=3), tiny.family, seed=5)
    stir(denoiser)
    return denoiser, injected.lora(lora_state(denoiser))


def predictor(tiny: Tiny, denoiser: nn.Module):
    random = torch.Generator().manual_seed(1)
    encoders = tiny.family.load_text_encoders(tiny.base, device=CPU, dtype=torch.float32)
    prompts = tiny.family.encode_prompts(encoders, ["a red circle"])
    noisy = torch.randn(1, tiny.family.latent.channels, 8, 8, generator=random)
    cond = Conditioning(prompts.text, prompts.pooled, torch.tensor([[64.0, 64, 0, 0, 64, 64]]))

    def predict() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=denoiser.dtype == torch.bfloat16):
            return tiny.family.predict(denoiser, noisy, torch.tensor([0.5]), cond)

    return predict


@pytest.mark.parametrize("file_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_good_file_gives_the_trained_output_and_leaves_the_model_alone(
    tiny: Tiny, file_format: Format, dtype: torch.dtype, tmp_path: Path
) -> None:
    denoiser, lora = trained(tiny, dtype)
    predict, path = predictor(tiny, denoiser), tmp_path / "lora.safetensors"
    metadata = structure_metadata(lora)
    write_lora(path, lora, tiny.family, file_format=file_format, dtype=torch.float16, metadata=metadata)
    before, names = predict(), [name for name, _ in denoiser.named_parameters()]
    trained_names = [name for name, p in denoiser.named_parameters() if p.requires_grad]
    share = check_output(path, lora, denoiser, tiny.family, predict, file_format=file_format)
    assert 0 < share < (0.01 if dtype == torch.float32 else 0.3)
    assert torch.equal(predict(), before)
    assert [name for name, _ in denoiser.named_parameters()] == names
    assert [name for name, p in denoiser.named_parameters() if p.requires_grad] == trained_names


def test_a_small_change_of_a_base_in_fp8_is_lost_in_its_rounding(tiny: Tiny, tmp_path: Path) -> None:
    denoiser = tiny.family.load_denoiser(tiny.base, device=CPU, dtype=torch.float32, keep=Keep("fp8"))
    injected = inject(denoiser, Network(linear=4, linear_alpha=3), tiny.family, seed=5)
    stir(denoiser)
    with torch.no_grad():
        for name, parameter in lora_state(denoiser).items():
            parameter.mul_(0.1 if "lora_B" in name else 1)
    lora, path = injected.lora(lora_state(denoiser)), tmp_path / "lora.safetensors"
    metadata = structure_metadata(lora)
    write_lora(path, lora, tiny.family, file_format="diffusers", dtype=torch.bfloat16, metadata=metadata)
    check_output(path, lora, denoiser, tiny.family, predictor(tiny, denoiser), file_format="diffusers")


def test_nothing_is_compiled_for_a_few_passes(tiny: Tiny, tmp_path: Path) -> None:
    denoiser, lora = trained(tiny, torch.float32)
    path = tmp_path / "lora.safetensors"
    write_lora(
        path, lora, tiny.family, file_format="kohya", dtype=torch.float32, metadata=structure_metadata(lora)
    )
    predict, compiled = predictor(tiny, denoiser), []

    @torch.compile(backend=lambda graph, _inputs: compiled.append(graph) or graph.forward)
    def doubled(output: Tensor) -> Tensor:
        return 2 * output

    check_output(path, lora, denoiser, tiny.family, lambda: doubled(predict()), file_format="kohya")
    assert not compiled


@pytest.mark.parametrize("file_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_file_with_wrong_layers_is_stopped(
    tiny: Tiny, joined: bool, file_format: Format, tmp_path: Path
) -> None:
    denoiser, lora = trained(tiny, torch.float32)
    path = tmp_path / "lora.safetensors"
    metadata = structure_metadata(lora)
    write_lora(path, lora, tiny.family, file_format=file_format, dtype=torch.float32, metadata=metadata)
    state = load_file(path)
    if joined:  # only what is one product while it is trained is wrong
        compute_in_input_precision(denoiser)
        join_projections(denoiser)
    wrong = re.compile(r"(to_?q|to_?k|to_?v|qkv)\b.*(lora_up|lora_B)" if joined else "lora_up|lora_B")
    flipped = [key for key in state if wrong.search(key)]
    assert flipped
    for key in flipped:
        state[key] = state[key].flip(0).contiguous()
    save_file(state, path, metadata)
    with pytest.raises(ModelError, match="something else than the trained model"):
        check_output(path, lora, denoiser, tiny.family, predictor(tiny, denoiser), file_format=file_format)
