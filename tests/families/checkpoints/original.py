"""Diffusers folders rewritten as original files, for tests: how other programs store the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eridiff.families.checkpoints import keys
from eridiff.families.checkpoints.layout import CheckpointLayout

PREFIXES = {
    "sdxl": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sd35": {
        "transformer": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    },
    "flux": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    },
}


def component_state(
    folder: Path, layout: CheckpointLayout, name: str, *, open_clip: bool
) -> dict[str, Tensor]:
    """One component's tensors under original names, without prefix."""
    state = {
        key: value for path in (folder / name).glob("*.safetensors") for key, value in load_file(path).items()
    }
    spec = layout.models[name]
    if spec.kind in ("clip_l", "clip_g"):
        state = {
            key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": value
            for key, value in state.items()
        }
        if spec.kind == "clip_l" and "text_projection.weight" in state:
            del state["text_projection.weight"]  # published files have none; see `with_unit_projection`
    if spec.names is None or (spec.kind == "clip_g" and not open_clip):
        return state
    plan = keys.to_original({key: tuple(value.shape) for key, value in state.items()}, spec.names)
    return {key: keys.assemble(assembly, state.__getitem__).contiguous() for key, assembly in plan.items()}


def with_unit_projection(folder: Path) -> None:
    """Give CLIP-L the projection that original files leave out, so that all layouts hold the same model."""
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    if "text_projection.weight" in state:
        state["text_projection.weight"] = torch.eye(len(state["text_projection.weight"]))
        save_file(state, path, {"format": "pt"})


def write_all_in_one(folder: Path, layout: CheckpointLayout, path: Path) -> None:
    """One file with everything, T5's table of tokens under both names."""
    whole: dict[str, Tensor] = {}
    for name, prefix in PREFIXES[layout.family].items():
        state = component_state(folder, layout, name, open_clip=layout.family == "sdxl")
        if layout.models[name].kind == "t5xxl":
            state["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
        whole |= {prefix + key: value for key, value in state.items()}
    if layout.family == "sdxl":
        whole["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[
            None
        ]
        whole["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    save_file(whole, path)


def write_checkpoint_save(folder: Path, layout: CheckpointLayout, path: Path) -> None:
    """What ComfyUI's CheckpointSave writes: logit scales, CLIP-L's projection, T5 without embed_tokens."""
    whole: dict[str, Tensor] = {}
    for name, prefix in PREFIXES[layout.family].items():
        kind = layout.models[name].kind
        state = component_state(folder, layout, name, open_clip=layout.family == "sdxl")
        if kind in ("clip_l", "clip_g", "t5xxl") and layout.family != "sdxl":
            whole[f"text_encoders.{kind}.logit_scale"] = torch.tensor(4.6052)
        if kind == "clip_l":
            width = state["text_model.final_layer_norm.weight"].shape[0]
            state["text_projection.weight"] = torch.eye(width)
        state.pop("encoder.embed_tokens.weight", None)
        whole |= {prefix + key: value for key, value in state.items()}
    save_file(whole, path)


def write_parts(folder: Path, layout: CheckpointLayout, into: Path) -> dict[str, Path]:
    """A file for each component, without prefixes; by the recipe's names of parts."""
    into.mkdir()
    parts = {}
    for name, spec in layout.models.items():
        path = into / f"{spec.kind}.safetensors"
        save_file(component_state(folder, layout, name, open_clip=False), path)
        parts[spec.kind] = path
    return parts


def write_configs(folder: Path, layout: CheckpointLayout, into: Path) -> None:
    """The folder for `model.tokenizers`: vocabularies, and configurations that weights do not tell."""
    for name in layout.tokenizers:
        shutil.copytree(folder / name, into / name)
    for name in layout.models:
        (into / name).mkdir(parents=True)
        config = json.loads((folder / name / "config.json").read_text())
        (into / name / "config.json").write_text(json.dumps(config))
