"""LoRA layers in a denoiser."""

from __future__ import annotations

import pytest
import torch

from eridiff.errors import RecipeError
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Network
from tests.lora.conftest import Tiny


@pytest.mark.parametrize("preset", ["attn", "attn-mlp", "all"])
def test_factors_are_float32_and_only_they_are_trained(tiny: Tiny, preset: str) -> None:
    denoiser = tiny.denoiser(torch.bfloat16)
    injected = inject(denoiser, Network(linear=4, targets=preset), tiny.family, seed=1)
    state = lora_state(denoiser)
    assert {parameter.dtype for parameter in state.values()} == {torch.float32}
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in state.values()}
    assert len(trained) == 2 * len(injected.targets)


def test_a_fresh_lora_changes_nothing(tiny: Tiny) -> None:
    denoiser, plain = tiny.denoiser(), tiny.denoiser()
    injected = inject(denoiser, Network(linear=4), tiny.family, seed=1)
    for target in injected.targets:
        layer, base = denoiser.get_submodule(target.name), plain.get_submodule(target.name)
        x = torch.randn(3, base.in_features, generator=torch.Generator().manual_seed(0))
        assert torch.equal(layer(x), base(x))


def test_the_draw_depends_on_seed_and_name_alone(tiny: Tiny) -> None:
    few, many = tiny.denoiser(), tiny.denoiser(torch.bfloat16)
    before = torch.get_rng_state()
    inject(few, Network(linear=4, targets="attn"), tiny.family, seed=1)
    torch.manual_seed(99)
    inject(many, Network(linear=4, targets="all"), tiny.family, seed=1)
    states = lora_state(few), lora_state(many)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    torch.set_rng_state(before)
    again = tiny.denoiser()
    inject(again, Network(linear=4, targets="attn"), tiny.family, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(
        torch.equal(value, states[0][name])
        for name, value in lora_state(again).items()
        if name.endswith("lora_A.weight")
    )


def test_kaiming_and_gaussian_have_their_spread(tiny: Tiny) -> None:
    for init, spread in (("kaiming", None), ("gaussian", 1 / 8)):
        denoiser = tiny.denoiser()
        inject(denoiser, Network(linear=8, init=init), tiny.family, seed=1)
        downs = [value for name, value in lora_state(denoiser).items() if "lora_A" in name]
        for down in downs:
            wanted = spread or (3 * down.shape[1]) ** -0.5  # uniform within 1/sqrt(inputs)
            assert down.detach().std().item() == pytest.approx(wanted, rel=0.35)


def test_ranks_by_pattern_keep_the_ratio_of_alpha(tiny: Tiny) -> None:
    denoiser = tiny.denoiser()
    network = Network(linear=4, linear_alpha=2, targets="attn", ranks={r".*\.to_q": 8})
    injected = inject(denoiser, network, tiny.family, seed=1)
    ranks = {target.name: target.rank for target in injected.targets}
    assert {rank for name, rank in ranks.items() if name.endswith(".to_q")} == {8}
    assert {rank for name, rank in ranks.items() if name.endswith(".to_k")} == {4}
    for target in injected.targets:
        layer = denoiser.get_submodule(target.name)
        assert (layer.r["default"], layer.scaling["default"]) == (target.rank, 0.5)


def test_rslora_divides_by_the_root_of_the_rank(tiny: Tiny) -> None:
    denoiser = tiny.denoiser()
    network = Network(linear=4, linear_alpha=8, targets="attn", rslora=True, ranks={r".*\.to_q": 16})
    for target in inject(denoiser, network, tiny.family, seed=1).targets:
        scale = denoiser.get_submodule(target.name).scaling["default"]
        assert scale == pytest.approx(2 * target.rank**0.5)
        assert scale == pytest.approx(target.alpha / target.rank)


def test_convolutions_are_adapted_where_the_family_has_some(tiny: Tiny) -> None:
    network = Network(linear=4, conv=3, conv_alpha=6)
    if not tiny.family.checkpoint.lora.convolutions:
        with pytest.raises(RecipeError, match="no convolutions"):
            inject(tiny.denoiser(), network, tiny.family, seed=1)
        return
    denoiser = tiny.denoiser()
    injected = inject(denoiser, network, tiny.family, seed=1)
    convolutions = [t for t in injected.targets if denoiser.get_submodule(t.name).base_layer.weight.ndim == 4]
    assert len(convolutions) > 10
    assert {(target.rank, target.alpha) for target in convolutions} == {(3, 6.0)}
    down = lora_state(denoiser)[f"{convolutions[0].name}.lora_A.weight"]
    assert down.shape[2:] == (3, 3)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [("tranformer_blocks.*to_q", r"\d+"), ("*.to_q", "regular expression"), ("attn_mlp", "attn-mlp")],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(
    tiny: Tiny, pattern: str, wanted: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        inject(tiny.denoiser(), Network(targets=pattern), tiny.family, seed=1)
    assert wanted in str(caught.value)
    assert caught.value.where == "network.targets"
