"""LoRA in text encoders: what is adapted, the files that come out, and what programs make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eridiff.errors import ModelError, RecipeError
from eridiff.families import live
from eridiff.families.base import Conditioning, Prompts, SampleRequest
from eridiff.families.checkpoints.loranames import Format
from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora import comfy
from eridiff.lora.adapters import Lora
from eridiff.lora.export import structure_metadata, tensors, write_lora
from eridiff.lora.forward import compute_in_input_precision
from eridiff.lora.inject import Injected, inject, lora_state
from eridiff.lora.inspection import inspect_lora
from eridiff.lora.output import check_output
from eridiff.lora.read import read_lora
from eridiff.lora.verify import rehearse, verify
from eridiff.recipe import Network
from tests.lora.conftest import CPU, Tiny

FORMATS: tuple[Format, ...] = ("kohya", "diffusers")
PROMPT = "a red circle above a small blue star"
NETWORK = {"linear": 4, "linear_alpha": 3, "text_encoder_linear": 2}


@dataclass(frozen=True)
class Trained:
    """A denoiser and text encoders as after training."""

    tiny: Tiny
    denoiser: nn.Module
    text: live.LiveText
    injected: Injected

    @property
    def lora(self) -> Lora:
        return self.injected.lora(lora_state(self.denoiser, self.text.models))

    def prompts(self, *captions: str) -> Prompts:
        """Embeddings by the trained encoders, T5's part as it was cached."""
        encoders = self.tiny.family.load_text_encoders(self.tiny.base, device=CPU, dtype=torch.float32)
        cached = self.tiny.family.encode_prompts(encoders, captions)
        with torch.no_grad():
            return self.text.prompts([ids[:, None] for ids in self.text.tokens(captions)], cached)

    def save(self, path: Path, file_format: Format, dtype: torch.dtype = torch.float32) -> Path:
        write_lora(
            path,
            self.lora,
            self.tiny.family,
            file_format=file_format,
            dtype=dtype,
            metadata=structure_metadata(self.lora),
        )
        return path


def adapted(tiny: Tiny, dtype: torch.dtype = torch.float32, **network: Any) -> Trained:
    """Models with a fresh LoRA."""
    denoiser = tiny.denoiser(dtype)
    text = live.load(tiny.family, tiny.base, device=CPU, dtype=dtype)
    chosen = Network.model_validate({**NETWORK, **network})
    return Trained(tiny, denoiser, text, inject(denoiser, chosen, tiny.family, seed=5, encoders=text.models))


def trained(tiny: Tiny, dtype: torch.dtype = torch.float32, **network: Any) -> Trained:
    """Models with a LoRA whose every layer does something."""
    made, random = adapted(tiny, dtype, **network), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in lora_state(made.denoiser, made.text.models).items():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return made


def test_all_layers_that_reach_the_denoiser_are_adapted(tiny: Tiny) -> None:
    made = adapted(tiny)
    for encoder in tiny.family.trainable_encoders:
        start = f"{encoder.name}.text_model.encoder.layers."
        names = [target.name for target in made.injected.encoder_targets if target.name.startswith(start)]
        count = made.text.models[encoder.name].config.num_hidden_layers - encoder.idle_layers
        assert len(names) == 6 * count
        assert {name.removeprefix(start).split(".")[0] for name in names} == set(map(str, range(count)))
    assert all(target.rank == 2 and target.alpha == 1.5 for target in made.injected.encoder_targets)


def test_attention_alone_and_rslora(tiny: Tiny) -> None:
    made = adapted(tiny, text_encoder_targets="attn", rslora=True)
    assert all(".self_attn." in target.name for target in made.injected.encoder_targets)
    assert {target.alpha for target in made.injected.encoder_targets} == {1.5 * 2**0.5}


def test_the_denoisers_parameters_are_drawn_as_without_encoders(tiny: Tiny) -> None:
    alone = tiny.denoiser()
    inject(alone, Network.model_validate(NETWORK), tiny.family, seed=5)
    state = lora_state(adapted(tiny).denoiser)
    assert all(torch.equal(value, state[name]) for name, value in lora_state(alone).items())


def test_a_fresh_lora_changes_no_embedding(tiny: Tiny) -> None:
    made = adapted(tiny)
    encoders = tiny.family.load_text_encoders(tiny.base, device=CPU, dtype=torch.float32)
    cached, now = tiny.family.encode_prompts(encoders, [PROMPT]), made.prompts(PROMPT)
    assert torch.equal(now.text, cached.text)
    assert torch.equal(now.pooled, cached.pooled)
    assert not torch.equal(trained(tiny).prompts(PROMPT).pooled, cached.pooled)


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_is_written_is_read_back_and_told(tiny: Tiny, file_format: Format, tmp_path: Path) -> None:
    made = trained(tiny)
    path = made.save(tmp_path / "lora.safetensors", file_format)
    found = read_lora(path, tiny.family)
    assert found.layers.keys() == made.lora.layers.keys()
    for name, adapter in made.lora.layers.items():
        torch.testing.assert_close(found.layers[name].change(), adapter.change(), rtol=1e-6, atol=1e-8)
    told = inspect_lora(read_header(path))
    for encoder in tiny.family.trainable_encoders:
        start = f"{encoder.name}."
        assert told.modules[encoder.name] == sum(name.startswith(start) for name in made.lora.layers)


def test_names_are_those_of_the_formats(tiny: Tiny) -> None:
    lora, kohya = trained(tiny).lora, {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    states = {f: tensors(lora, tiny.family, file_format=f, dtype=torch.float32) for f in FORMATS}
    for encoder in tiny.family.trainable_encoders:
        flat = f"{kohya[encoder.name]}_text_model_encoder_layers_0_self_attn_q_proj"
        wanted = {f"{flat}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
        assert wanted <= states["kohya"].keys()
        dotted = f"{encoder.name}.text_model.encoder.layers.0.mlp.fc1"
        assert {f"{dotted}.lora_{factor}.weight" for factor in "AB"} <= states["diffusers"].keys()


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_gate_passes_good_files(tiny: Tiny, file_format: Format, tmp_path: Path) -> None:
    made = trained(tiny)
    path = made.save(tmp_path / "lora.safetensors", file_format, torch.float16)
    encoders = made.text.models
    assert verify(path, made.lora, made.denoiser, tiny.family, file_format=file_format, encoders=encoders)
    assert rehearse(made.injected, made.denoiser, tiny.family, file_format=file_format, encoders=encoders)


def test_comfyui_uses_every_key_of_the_default_file(tiny: Tiny) -> None:
    lora = trained(tiny).lora
    default = tiny.family.checkpoint.lora.default
    state = tensors(lora, tiny.family, file_format=default, dtype=torch.float32)
    applied, unused = comfy.load(state, tiny.family.checkpoint, lora.structure)
    assert unused == []
    reached = {loaded.spot.component for loaded in applied}
    assert reached == {
        tiny.family.checkpoint.denoiser,
        *(encoder.name for encoder in tiny.family.trainable_encoders),
    }


@pytest.mark.parametrize("fault", ["lost", "flattened", "halved"])
def test_the_gate_stops_files_whose_encoders_are_wrong(tiny: Tiny, fault: str, tmp_path: Path) -> None:
    made, file_format = trained(tiny), tiny.family.checkpoint.lora.default
    state = tensors(made.lora, tiny.family, file_format=file_format, dtype=torch.float32)
    for key in [key for key in state if key.startswith(("lora_te", "text_encoder"))]:
        if fault == "lost" and "q_proj" in key:
            del state[key]
        elif fault == "flattened":  # as newer transformers call these modules
            state[key.replace("text_model.", "").replace("text_model_", "")] = state.pop(key)
        elif fault == "halved" and ("lora_up" in key or "lora_B" in key):
            state[key] = state[key] / 2
    path = tmp_path / "lora.safetensors"
    save_file(state, path, structure_metadata(made.lora))
    with pytest.raises(ModelError):
        verify(
            path,
            made.lora,
            made.denoiser,
            tiny.family,
            file_format=file_format,
            encoders=made.text.models,
        )


def predictor(made: Trained, dtype: torch.dtype) -> Any:
    """The denoiser's output for a caption that goes through the trained encoders each time."""
    family, random = made.tiny.family, torch.Generator().manual_seed(1)
    noisy = torch.randn(1, family.latent.channels, 8, 8, generator=random)
    encoders = family.load_text_encoders(made.tiny.base, device=CPU, dtype=dtype)
    cached = family.encode_prompts(encoders, [PROMPT])
    tokens = [ids[:, None] for ids in made.text.tokens([PROMPT])]

    def predict() -> Tensor:
        told = made.text.prompts(tokens, cached)
        cond = Conditioning(told.text, told.pooled, torch.tensor([[64.0, 64, 0, 0, 64, 64]]))
        return family.predict(made.denoiser, noisy, torch.tensor([0.5]), cond)

    return predict


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_proof_goes_through_the_encoders_and_leaves_them_alone(
    tiny: Tiny, file_format: Format, dtype: torch.dtype, tmp_path: Path
) -> None:
    made = trained(tiny, dtype)
    for model in (made.denoiser, *made.text.models.values()):
        compute_in_input_precision(model)
    path = made.save(tmp_path / "lora.safetensors", file_format, torch.float16)
    predict, encoders = predictor(made, dtype), made.text.models
    with torch.no_grad():
        before = predict()
    own = {
        (part, name): (parameter.data_ptr(), parameter.dtype, parameter.requires_grad)
        for part, model in encoders.items()
        for name, parameter in model.named_parameters()
    }
    share = check_output(
        path, made.lora, made.denoiser, tiny.family, predict, file_format=file_format, encoders=encoders
    )
    assert 0 < share < (0.01 if dtype == torch.float32 else 0.3)
    with torch.no_grad():
        assert torch.equal(predict(), before)
    assert own == {
        (part, name): (parameter.data_ptr(), parameter.dtype, parameter.requires_grad)
        for part, model in encoders.items()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_output_proof_sees_a_wrong_encoder(tiny: Tiny, file_format: Format, tmp_path: Path) -> None:
    made = trained(tiny)
    path = made.save(tmp_path / "lora.safetensors", file_format)
    state = load_file(path)
    for key in [key for key in state if key.startswith(("lora_te", "text_encoder"))]:
        if key.endswith(("lora_up.weight", "lora_B.weight")):
            state[key] = -3 * state[key]
    save_file(state, path, structure_metadata(made.lora))
    with pytest.raises(ModelError, match="something else than the trained model"):
        check_output(
            path,
            made.lora,
            made.denoiser,
            tiny.family,
            predictor(made, torch.float32),
            file_format=file_format,
            encoders=made.text.models,
        )


def test_a_users_whole_pipeline_with_the_file_draws_what_the_trained_model_draws(
    tiny: Tiny, tmp_path: Path
) -> None:
    made, names = trained(tiny), tiny.family.checkpoint.lora
    # Diffusers' reader of kohya's Flux files has the sizes of the published model in it.
    file_format: Format = names.default if names.kohya_widths is None else "diffusers"
    path = made.save(tmp_path / "lora.safetensors", file_format)
    request = SampleRequest(seeds=(3,), width_px=64, height_px=64, steps=2, guidance=1.0)
    ours = tiny.family.load_pipeline(tiny.base, device=CPU, dtype=torch.float32)
    setattr(ours, tiny.family.checkpoint.denoiser, made.denoiser.eval())
    prompts = made.prompts(PROMPT)
    with torch.no_grad():
        (wanted,) = tiny.family.sample(ours, prompts, tiny.family.unconditional(prompts), request)

    kind = getattr(diffusers, tiny.family.checkpoint.pipelines[0])
    theirs = kind.from_pretrained(tiny.folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(path)
    assert set(theirs.get_list_adapters()) == {
        tiny.family.checkpoint.denoiser,
        *(encoder.name for encoder in tiny.family.trainable_encoders),
    }
    lengths = {"t5_length": "max_sequence_length"}
    options = tiny.family.options.model_dump()
    with torch.no_grad():
        (found,) = theirs(
            PROMPT,
            width=64,
            height=64,
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(3),
            **{theirs_name: options[name] for name, theirs_name in lengths.items() if name in options},
        ).images
    apart = max(abs(a - b) for a, b in zip(wanted.tobytes(), found.tobytes(), strict=True))
    assert apart <= 1


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_run_may_start_from_encoders_that_were_trained(
    tiny: Tiny, file_format: Format, tmp_path: Path
) -> None:
    made = trained(tiny)
    path = made.save(tmp_path / "lora.safetensors", file_format)
    again = adapted(tiny, linear=8, text_encoder_linear=4, init_from=path).lora
    for name, adapter in made.lora.layers.items():
        torch.testing.assert_close(again.layers[name].change(), adapter.change(), rtol=1e-5, atol=1e-7)
    with pytest.raises(RecipeError, match="modules that the recipe does not") as caught:
        inject(tiny.denoiser(), Network(linear=8, init_from=path), tiny.family, seed=1)
    assert "train.train_text_encoder: true" in str(caught.value)
