"""LoRA files of the published models' sizes, through diffusers' own readers, without weights of a base."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from torch import nn

from eridiff import families
from eridiff.families.base import ModelFamily
from eridiff.families.checkpoints.facts import fact
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.encoders import choose_in_encoder, parameter_name
from eridiff.lora.export import structure_metadata, write_lora
from eridiff.lora.inject import adaptable
from eridiff.lora.read import read_lora
from eridiff.lora.targets import choose
from eridiff.lora.verify import verify
from eridiff.recipe import Network

LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "dual_attention_layers": [],
    "pos_embed_max_size": 192,
}
MODELS = {
    "sdxl": ("sdxl", {}, {"targets": "attn-mlp"}, 722),
    "sdxl with convolutions": ("sdxl", {}, {"targets": "attn", "conv": 1}, 609),
    "sd35 medium": ("sd35", {}, {"targets": "attn-mlp"}, 337),
    "sd35 large": ("sd35", LARGE, {"targets": "attn-mlp"}, 453),
    "flux": ("flux", {}, {"targets": "attn-mlp"}, 418),
}


def hollow(family: ModelFamily, changes: dict[str, object]) -> nn.Module:
    spec = family.checkpoint.models[family.checkpoint.denoiser]
    with torch.device("meta"):
        return getattr(diffusers, spec.class_name).from_config(fact(spec.facts) | changes)


def random_lora(denoiser: nn.Module, network: Network, family: ModelFamily) -> Lora:
    random, layers = torch.Generator().manual_seed(0), {}
    for target in choose(adaptable(denoiser), network, family):
        shape = denoiser.get_submodule(target.name).weight.shape
        ones = (1,) * (len(shape) - 2)
        down = torch.randn((target.rank, *shape[1:]), generator=random)
        up = torch.randn((shape[0], target.rank, *ones), generator=random)
        layers[f"{family.checkpoint.denoiser}.{target.name}"] = Adapter(down, up, target.alpha)
    names = family.checkpoint.models[family.checkpoint.denoiser].names
    assert names is not None
    return Lora(layers, names.structure(denoiser.state_dict().keys()))


def hollow_encoders(family: ModelFamily) -> dict[str, nn.Module]:
    models = {}
    for name in (encoder.name for encoder in family.trainable_encoders):
        spec = family.checkpoint.models[name]
        kind = getattr(transformers, spec.class_name)
        with torch.device("meta"):
            models[name] = kind(kind.config_class.from_dict(fact(spec.facts)))
    return models


def random_encoder_lora(encoders: dict[str, nn.Module], network: Network, family: ModelFamily) -> Lora:
    random, layers = torch.Generator().manual_seed(1), {}
    for encoder in family.trainable_encoders:
        model = encoders[encoder.name]
        for target in choose_in_encoder(list(adaptable(model)), encoder, network):
            height, width = model.get_submodule(target.name).weight.shape
            down = torch.randn(target.rank, width, generator=random)
            up = torch.randn(height, target.rank, generator=random)
            layers[parameter_name(encoder.name, target.name)] = Adapter(down, up, target.alpha)
    return Lora(layers, {})


@pytest.mark.parametrize(("name", "num_layers"), {"sdxl": 66 + 192, "sd35": 72 + 192, "flux": 72}.items())
def test_every_reader_gets_the_text_encoders_of_the_default_file(
    name: str, num_layers: int, tmp_path: Path
) -> None:
    family, network = families.get(name), Network(linear=1, linear_alpha=2, text_encoder_linear=2)
    denoiser, encoders = hollow(family, {}), hollow_encoders(families.get(name))
    told = random_encoder_lora(encoders, network, family)
    assert len(told.layers) == num_layers
    whole = random_lora(denoiser, network, family)
    lora = Lora({**whole.layers, **told.layers}, whole.structure)
    path = tmp_path / "lora.safetensors"
    file_format = family.checkpoint.lora.default
    write_lora(path, lora, family, file_format=file_format, dtype=torch.float16, metadata={})
    readers = verify(path, lora, denoiser, family, file_format=file_format, encoders=encoders)
    assert readers == ("comfyui", "diffusers")
    assert read_lora(path, family).layers.keys() == lora.layers.keys()


@pytest.mark.parametrize("model", MODELS)
def test_every_reader_gets_every_layer_of_the_default_file(model: str, tmp_path: Path) -> None:
    name, changes, network, num_layers = MODELS[model]
    family = families.get(name)
    denoiser = hollow(family, changes)
    lora = random_lora(denoiser, Network(linear=1, linear_alpha=2, **network), family)
    assert len(lora.layers) == num_layers
    file_format: Format = family.checkpoint.lora.default
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, family, file_format=file_format, dtype=torch.float16, metadata={})
    readers = verify(path, lora, denoiser, family, file_format=file_format)
    assert readers == ("comfyui", "diffusers")
    # Without a word in its metadata, too, the file shows which model it is for.
    assert read_lora(path, family).layers.keys() == lora.layers.keys()


def test_flux_in_diffusers_names_is_a_third_smaller(tmp_path: Path) -> None:
    family = families.get("flux")
    lora = random_lora(hollow(family, {}), Network(linear=4), family)
    sizes = {}
    for file_format in ("kohya", "diffusers"):
        path = tmp_path / file_format
        write_lora(
            path,
            lora,
            family,
            file_format=file_format,
            dtype=torch.bfloat16,
            metadata=structure_metadata(lora),
        )
        sizes[file_format] = path.stat().st_size
    assert 0.55 < sizes["diffusers"] / sizes["kohya"] < 0.75
