"""Bases of the published widths with random weights: they take the time and the memory of trained ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.device import DEVICE
from eridiff import families
from eridiff.demo.architecture import LAYOUTS, build_denoiser_on_meta, build_vae, save_random_base
from eridiff.demo.encoders import ClipSize, T5Size
from eridiff.demo.sizes import TINY, BaseSize, FluxSize, Sd3Size, UnetSize, VaeSize
from eridiff.families.attention.processors import CrossProcessor, FluxProcessor, JointProcessor
from eridiff.families.feed_forward.geglu import use_one_pass
from eridiff.families.frozen.keep import Keep, away, block_of, blocks_of
from eridiff.families.frozen.linear import FrozenLinear, quantise_linears
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Network

PUBLISHED = BaseSize(
    vae=VaeSize(blocks=(128, 256, 512, 512), layers=2, norm_groups=32),
    clip_l=ClipSize(width=768, heads=12, layers=12, feed_forward=3072, projection=768),
    clip_g=ClipSize(width=1280, heads=20, layers=32, feed_forward=5120, projection=1280),
    t5=T5Size(width=4096, heads=64, head_width=64, layers=24, feed_forward=10240),
    unet=UnetSize(
        blocks=(320, 640, 1280),
        head_width=64,
        transformer_layers=(1, 2, 10),
        norm_groups=32,
        number_features=256,
    ),
    sd3=Sd3Size(layers=24, heads=24, head_width=64, dual_layers=tuple(range(13)), max_side=384),
    flux=FluxSize(double_layers=19, single_layers=38, heads=24, axes=(16, 56, 56)),
)
LARGE = replace(PUBLISHED, sd3=Sd3Size(layers=38, heads=38, head_width=64, dual_layers=(), max_side=192))
BASES = {
    "sdxl": ("sdxl", PUBLISHED),
    "sd35-medium": ("sd35", PUBLISHED),
    "sd35-large": ("sd35", LARGE),
    "flux-dev": ("flux", PUBLISHED),
}
"""Recipe to family and widths."""
NETWORK = Network(linear=16, linear_alpha=16)
PROCESSORS = {"sdxl": CrossProcessor, "sd35": JointProcessor, "flux": FluxProcessor}


def write_base(family: str, size: BaseSize, folder: Path) -> None:
    """A diffusers folder of the published widths; tokenizers and index are the tiny base's."""
    if (folder / "complete").exists():
        return
    save_random_base(family, folder, size=TINY)
    layout = LAYOUTS[family]
    with torch.device("meta"):
        vae = build_vae(family, size)
    save(build_denoiser_on_meta(family, size), folder / layout.denoiser)
    save(vae, folder / "vae")
    for number, kind in enumerate(layout.text_encoders, start=1):
        suffix = "" if number == 1 else f"_{number}"
        save(text_encoder(kind, folder / f"text_encoder{suffix}", size), folder / f"text_encoder{suffix}")
    (folder / "complete").touch()


def text_encoder(kind: str, tiny: Path, size: BaseSize) -> nn.Module:
    """The encoder of `tiny` at published widths, without weights."""
    import transformers

    widths: dict[str, dict[str, int]] = {
        "CLIP-L": clip_widths(size.clip_l),
        "CLIP-G": clip_widths(size.clip_g),
        "T5": {
            "d_model": size.t5.width,
            "d_kv": size.t5.head_width,
            "d_ff": size.t5.feed_forward,
            "num_layers": size.t5.layers,
            "num_heads": size.t5.heads,
        },
    }
    config = transformers.AutoConfig.from_pretrained(tiny)
    name = config.architectures[0]
    for key, value in widths[kind].items():
        setattr(config, key, value)
    with torch.device("meta"):
        return getattr(transformers, name)(config)


def clip_widths(size: ClipSize) -> dict[str, int]:
    """A CLIP's widths as its config names them."""
    return {
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.feed_forward,
        "projection_dim": size.projection,
    }


def random_denoiser(recipe: str) -> nn.Module:
    """Diffusers' own denoiser of a key of `BASES`, on the device in bfloat16."""
    family, size = BASES[recipe]
    return materialised(build_denoiser_on_meta(family, size))


def kept_denoiser(recipe: str, keep: Keep) -> nn.Module:
    """A denoiser as families load it, with random weights, which are made one by one on the device."""
    name, size = BASES[recipe]
    blocks = families.get(name, {}).checkpoint.blocks
    # Not diffusers' own `to`, which warns of precisions that it would keep.
    model: Any = nn.Module.to(build_denoiser_on_meta(name, size), torch.bfloat16)
    model.set_attn_processor(PROCESSORS[name]())
    use_one_pass(model, DEVICE)  # of SDXL; the others have no such layers
    if keep.quantize != "none":
        quantise_linears(model, blocks, keep.quantize)
    absent = away(blocks_of((key for key, _ in model.named_modules()), blocks), keep.offload)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for key, weight in list(model.named_parameters()):
        home = torch.device("cpu") if block_of(key, blocks) in absent else DEVICE
        path, _, leaf = key.rpartition(".")
        module = model.get_submodule(path)
        values = torch.empty(weight.shape, dtype=torch.bfloat16, device=DEVICE)
        if "norm" in key and leaf == "weight":
            values.fill_(1)
        else:
            values.normal_(std=0.02, generator=generator)
        if isinstance(module, FrozenLinear) and leaf == "weight":
            module.take(values, home)
        else:
            module._parameters[leaf] = nn.Parameter(values.to(home), requires_grad=False)
    for key, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            path, _, leaf = key.rpartition(".")
            model.get_submodule(path)._buffers[leaf] = torch.zeros_like(buffer, device=DEVICE)
    return model.requires_grad_(False).train()


def adapt(recipe: str, denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """Puts the LoRA that all benchmarks train into a denoiser; its parameters by name, on the device."""
    inject(denoiser, NETWORK, families.get(BASES[recipe][0], {}), seed=0)
    parameters = lora_state(denoiser)
    for parameter in parameters.values():  # peft puts it beside weights that stay away
        parameter.data = parameter.data.to(DEVICE)
    return parameters


def save(module: nn.Module, folder: Path) -> None:
    """Writes a module of the meta device with random weights."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    materialised(module).save_pretrained(folder)
    torch.cuda.empty_cache()


def materialised(module: nn.Module) -> nn.Module:
    """A module of the meta device with random bfloat16 weights: norms at 1, the rest small."""
    # Not diffusers' own `to`, which warns of precisions that it would keep.
    module = nn.Module.to(module, torch.bfloat16).to_empty(device=DEVICE)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(1)
            else:
                weight.normal_(std=0.02)
        for buffer in module.buffers():
            buffer.zero_()
    return module
