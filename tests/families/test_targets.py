"""Which layers each preset adapts, on models of full size without weights."""

import re
from functools import cache

import diffusers
import pytest
import torch
from torch import nn

from eridiff import families
from eridiff.families.checkpoints.facts import fact

FULL_SIZE = {
    "sdxl": ("UNet2DConditionModel", "sdxl_unet"),
    "sd35": ("SD3Transformer2DModel", "sd35_transformer"),
    "flux": ("FluxTransformer2DModel", "flux_transformer"),
}
COUNTS = {
    ("sdxl", "attn"): 70 * 8,
    ("sdxl", "attn-mlp"): 70 * 10 + 11 * 2,
    ("sdxl", "all"): 70 * 10 + 11 * 2 + 17,
    ("flux", "attn"): 19 * 8 + 38 * 3,
    ("flux", "attn-mlp"): 19 * 12 + 38 * 5,
    ("flux", "all"): 19 * 14 + 38 * 6,
}


@cache
def linears(name):
    class_name, facts = FULL_SIZE[name]
    with torch.device("meta"):
        model = getattr(diffusers, class_name).from_config(fact(facts))
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)], model


def matched(name, preset):
    paths, _ = linears(name)
    patterns = families.get(name).targets[preset]
    return {path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)}


@pytest.mark.parametrize(("name", "preset"), COUNTS)
def test_counts(name, preset):
    assert len(matched(name, preset)) == COUNTS[name, preset]


def test_sd35_counts():
    _, model = linears("sd35")
    blocks, dual = model.config.num_layers, len(model.config.dual_attention_layers)
    attention = blocks * 8 - 1 + dual * 4
    feed_forward = blocks * 4 - 2
    assert len(matched("sd35", "attn")) == attention
    assert len(matched("sd35", "attn-mlp")) == attention + feed_forward
    assert len(matched("sd35", "all")) == attention + feed_forward + blocks * 2


@pytest.mark.parametrize("name", families.names())
def test_presets_grow(name):
    assert tuple(families.get(name).targets) == ("attn", "attn-mlp", "all")
    assert matched(name, "attn") < matched(name, "attn-mlp") < matched(name, "all")


@pytest.mark.parametrize("name", families.names())
def test_all_is_every_linear_layer_of_the_blocks(name):
    paths, _ = linears(name)
    left_out = set(paths) - matched(name, "all")
    assert left_out == {path for path in paths if not re.search(r"blocks?\.", path)}


@pytest.mark.parametrize("name", families.names())
def test_every_pattern_matches_layers_and_only_linear_ones(name):
    paths, model = linears(name)
    everything = [path for path, _ in model.named_modules()]
    for pattern in families.get(name).targets["all"]:
        found = [path for path in everything if re.fullmatch(pattern, path)]
        assert found
        assert set(found) <= set(paths)
