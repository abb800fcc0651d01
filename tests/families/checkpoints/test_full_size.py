"""Names and shapes of the published models, without their weights: both ways, to the last key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from eridiff.families.checkpoints import fitting, keys, layouts
from eridiff.families.checkpoints.facts import fact
from eridiff.families.checkpoints.keys import Shape, assembled_shape
from eridiff.families.checkpoints.layout import CheckpointLayout, ModelSpec

PUBLISHED = Path(__file__).parents[4] / "shared" / "layouts"
LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "dual_attention_layers": [],
    "pos_embed_max_size": 192,
}

# component: layout, name, changes to the shipped configuration, tensors in the original file, their digest
COMPONENTS: dict[str, tuple[CheckpointLayout, str, dict[str, Any], int, str]] = {
    "sdxl unet": (layouts.SDXL, "unet", {}, 1680, "b968733410df414e"),
    "sdxl vae": (layouts.SDXL, "vae", {}, 248, "5c5821b036193b0e"),
    "open clip": (layouts.SDXL, "text_encoder_2", {}, 389, "481c0a62eba81a9e"),
    "sd35 medium": (layouts.SD35, "transformer", {}, 665, "87a5a0c27c81dd31"),
    "sd35 large": (layouts.SD35, "transformer", LARGE, 923, "47478f031adcee0c"),
    "sd35 vae": (layouts.SD35, "vae", {}, 244, "02e25618403d3cfa"),
    "flux": (layouts.FLUX, "transformer", {}, 780, "1f1618222a5cec10"),
    "flux vae": (layouts.FLUX, "vae", {}, 244, "02e25618403d3cfa"),
}

# file with a component: its name, the prefix there, what it holds besides
FILES = [
    ("sdxl unet", "sdxl_base_allinone", "model.diffusion_model."),
    ("sdxl vae", "sdxl_base_allinone", "first_stage_model."),
    ("open clip", "sdxl_base_allinone", "conditioner.embedders.1.model."),
    ("sd35 medium", "sd35_medium_mmdit_vae", "model.diffusion_model."),
    ("sd35 medium", "sd35_medium_comfy_checkpointsave", "model.diffusion_model."),
    ("sd35 large", "sd35_large_mmdit_vae", "model.diffusion_model."),
    ("sd35 large", "sd35_large_allinone", "model.diffusion_model."),
    ("sd35 vae", "sd35_medium_allinone", "first_stage_model."),
    ("flux", "flux1_dev", ""),
    ("flux", "flux1_dev_comfy_checkpointsave", "model.diffusion_model."),
    ("flux vae", "flux_ae", ""),
    ("flux vae", "flux1_dev_comfy_checkpointsave", "vae."),
]
ENCODERS = [
    (layouts.FLUX, "text_encoder", "clip_l", ""),
    (layouts.SD35, "text_encoder", "sd35_medium_allinone", "text_encoders.clip_l.transformer."),
    (layouts.SD35, "text_encoder", "sd35_medium_comfy_checkpointsave", "text_encoders.clip_l.transformer."),
    (layouts.SDXL, "text_encoder", "sdxl_base_allinone", "conditioner.embedders.0.transformer."),
    (layouts.SDXL, "text_encoder_2", "sdxl_base_allinone", "conditioner.embedders.1.model."),
    (layouts.SD35, "text_encoder_2", "clip_g", ""),
    (layouts.SD35, "text_encoder_3", "t5xxl_fp16", ""),
    (layouts.FLUX, "text_encoder_2", "flux1_dev_comfy_checkpointsave", "text_encoders.t5xxl.transformer."),
]


def config_of(component: str) -> dict[str, Any]:
    layout, name, changes, _, _ = COMPONENTS[component]
    return fact(layout.models[name].facts) | changes


@cache
def model_shapes(class_name: str, config: str) -> dict[str, Shape]:
    with torch.device("meta"):
        if hasattr(transformers, class_name):
            kind = getattr(transformers, class_name)
            model = kind(kind.config_class.from_dict(json.loads(config)))
        else:
            model = getattr(diffusers, class_name).from_config(json.loads(config))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def diffusers_shapes(component: str) -> dict[str, Shape]:
    layout, name, *_ = COMPONENTS[component]
    return model_shapes(layout.models[name].class_name, json.dumps(config_of(component), sort_keys=True))


def spec_of(component: str) -> ModelSpec:
    layout, name, *_ = COMPONENTS[component]
    return layout.models[name]


def original_shapes(component: str) -> dict[str, Shape]:
    shapes, names = diffusers_shapes(component), spec_of(component).names
    assert names is not None
    return {
        key: assembled_shape(assembly, shapes) for key, assembly in keys.to_original(shapes, names).items()
    }


def digest(shapes: Mapping[str, Shape]) -> str:
    lines = "\n".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def published(name: str, prefix: str) -> dict[str, Shape]:
    path = PUBLISHED / f"{name}.json"
    if not path.is_file():
        pytest.skip("the key lists of published files are not beside the repository")
    listed = json.loads(path.read_text())
    return {key[len(prefix) :]: tuple(shape) for key, (_, shape) in listed.items() if key.startswith(prefix)}


@pytest.mark.parametrize("component", COMPONENTS)
def test_original_names_and_shapes_of_the_full_size_models(component: str) -> None:
    shapes = original_shapes(component)
    assert (len(shapes), digest(shapes)) == COMPONENTS[component][3:]


@pytest.mark.parametrize("component", COMPONENTS)
def test_there_and_back_is_where_one_was(component: str) -> None:
    shapes, names = diffusers_shapes(component), spec_of(component).names
    assert names is not None
    there, originals = keys.to_original(shapes, names), original_shapes(component)
    back = keys.to_diffusers(originals, names)
    assert {key: assembled_shape(assembly, originals) for key, assembly in back.items()} == shapes
    assert there.keys() == originals.keys()


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_configuration_is_told_by_the_shapes(component: str) -> None:
    spec = spec_of(component)
    found = spec.configure(fact(spec.facts), diffusers_shapes(component))
    assert found == config_of(component)


@pytest.mark.parametrize(("component", "file", "prefix"), FILES)
def test_published_files_have_exactly_these_tensors(component: str, file: str, prefix: str) -> None:
    names = spec_of(component).names
    assert names is not None
    listed = {key: shape for key, shape in published(file, prefix).items() if key not in names.ignored}
    assert listed == original_shapes(component)


@pytest.mark.parametrize(("layout", "name", "file", "prefix"), ENCODERS)
def test_text_encoders_fit_published_files(
    layout: CheckpointLayout, name: str, file: str, prefix: str
) -> None:
    spec, shapes = layout.models[name], published(file, prefix)
    plan = fitting.plan(spec, shapes)
    found = {key: assembled_shape(assembly, shapes) for key, assembly in plan.items()}
    config = spec.configure(fact(spec.facts), found)
    assert config == fact(spec.facts)
    wanted = model_shapes(spec.class_name, json.dumps(config, sort_keys=True))
    fitted = fitting.fit(spec, plan, wanted, shapes)
    assert {key: assembled_shape(assembly, shapes) for key, assembly in fitted.items()} == wanted


def test_the_shipped_configurations_are_the_published_ones() -> None:
    if not PUBLISHED.is_dir():
        pytest.skip("the configurations of published models are not beside the repository")
    folders = {"sdxl": "sdxl", "sd35": "sd35m", "flux": "flux"}
    for layout in layouts.LAYOUTS:
        for name, spec in layout.models.items():
            path = PUBLISHED / "configs" / folders[layout.family] / name / "config.json"
            wanted = json.loads(path.read_text())
            wanted.pop("architectures", None)
            assert fact(spec.facts) == wanted, path
