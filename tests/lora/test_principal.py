"""PiSSA and OLoRA: what peft makes of a changed base, as a change of the whole one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eridiff.errors import RecipeError
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Adapter
from eridiff.lora.export import structure_metadata, write_lora
from eridiff.lora.inject import Injected, inject, load_state, lora_state
from eridiff.lora.output import check_output
from eridiff.lora.principal import offset
from eridiff.lora.read import read_lora
from eridiff.lora.verify import rehearse, verify
from eridiff.recipe import Network
from tests.lora.conftest import Tiny
from tests.lora.test_output import predictor

INITS = ("pissa", "pissa_niter_4", "olora")
SETTINGS = {"linear": 4, "linear_alpha": 6, "targets": "attn"}


def started(tiny: Tiny, init: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Injected]:
    denoiser = tiny.denoiser(dtype)
    network = Network.model_validate({**SETTINGS, "init": init})
    return denoiser, inject(denoiser, network, tiny.family, seed=3)


def by_peft(tiny: Tiny, init: str, targets: list[str]) -> nn.Module:
    """A denoiser with peft's own LoRA, whose base has lost what the LoRA starts as."""
    from peft import LoraConfig, inject_adapter_in_model

    denoiser = tiny.denoiser()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="|".join(map(re.escape, targets)),
        init_lora_weights=init,  # pyright: ignore[reportArgumentType]
    )
    inject_adapter_in_model(config, denoiser, adapter_name="default")
    return denoiser


def move(denoiser: nn.Module, size: float = 0.1) -> None:
    random = torch.Generator().manual_seed(0)
    load_state(
        denoiser,
        {
            name: value.detach() + size * torch.randn(value.shape, generator=random)
            for name, value in lora_state(denoiser).items()
        },
    )


def gradients(denoiser: nn.Module, output: Tensor) -> dict[str, Tensor]:
    parameters = lora_state(denoiser)
    found = torch.autograd.grad(output.square().sum(), list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


@pytest.mark.parametrize("init", INITS)
def test_the_base_stays_and_nothing_is_changed_at_first(tiny: Tiny, init: str) -> None:
    denoiser, injected = started(tiny, init)
    plain = dict(tiny.denoiser().named_parameters())
    own = {n.replace(".base_layer.", "."): p for n, p in denoiser.named_parameters() if ".lora_" not in n}
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], value) for name, value in plain.items())
    changes = [adapter.change() for adapter in injected.lora(lora_state(denoiser)).layers.values()]
    assert not any(change.any() for change in changes)
    wanted = predictor(tiny, tiny.denoiser())()
    torch.testing.assert_close(predictor(tiny, denoiser)(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_computes_and_learns_what_pefts_own_does(tiny: Tiny, init: str) -> None:
    denoiser, injected = started(tiny, init)
    names = [target.name for target in injected.targets]
    other = by_peft(tiny, init, names)
    for name, value in lora_state(other).items():
        assert torch.equal(value, lora_state(denoiser)[name]), name
    move(denoiser)
    move(other)
    found, wanted = predictor(tiny, denoiser)(), predictor(tiny, other)()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    mine, theirs = gradients(denoiser, found), gradients(other, wanted)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            mine[name], gradient, rtol=2e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-7
        )
    plain = tiny.denoiser()
    lora = injected.lora(lora_state(denoiser))
    for name in names:
        layer = other.get_submodule(name)
        theirs_change = layer.get_base_layer().weight + layer.get_delta_weight("default")  # type: ignore[operator]
        mine_change = lora.layers[f"{injected.component}.{name}"].change().float()
        torch.testing.assert_close(
            plain.get_submodule(name).weight + mine_change, theirs_change, rtol=1e-4, atol=2e-6
        )


def test_the_approximation_depends_on_seed_and_name_alone(tiny: Tiny) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        before, denoiser = torch.get_rng_state(), tiny.denoiser()
        network = Network.model_validate({**SETTINGS, "init": "pissa_niter_1"})
        inject(denoiser, network, tiny.family, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        states.append(lora_state(denoiser))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


@pytest.mark.parametrize("file_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_is_the_change_of_the_untouched_base(
    tiny: Tiny, file_format: Format, dtype: torch.dtype, tmp_path: Path
) -> None:
    denoiser, injected = started(tiny, "pissa", dtype)
    assert rehearse(injected, denoiser, tiny.family, file_format=file_format)
    move(denoiser)
    lora, path = injected.lora(lora_state(denoiser)), tmp_path / "lora.safetensors"
    metadata = structure_metadata(lora)
    write_lora(path, lora, tiny.family, file_format=file_format, dtype=torch.float16, metadata=metadata)
    verify(path, lora, denoiser, tiny.family, file_format=file_format)
    read = read_lora(path, tiny.family)
    assert {adapter.rank for adapter in read.layers.values()} == {2 * 4}
    assert {round(adapter.scale, 6) for adapter in read.layers.values()} == (
        {1.5} if file_format == "kohya" else {1.0}
    )
    predict = predictor(tiny, denoiser)
    before = predict()
    check_output(path, lora, denoiser, tiny.family, predict, file_format=file_format)
    assert torch.equal(predict(), before)


def test_a_small_change_of_large_factors_keeps_its_digits_in_a_small_type() -> None:
    """Two products that nearly cancel, as peft writes them, would lose most of it."""
    random = torch.Generator().manual_seed(0)
    start = Adapter(torch.randn(4, 64, generator=random), torch.randn(32, 4, generator=random), 4.0)
    now = Adapter(
        start.down + 1e-3 * torch.randn(4, 64, generator=random),
        start.up + 1e-3 * torch.randn(32, 4, generator=random),
        4.0,
    )
    exact = now.change() - start.change()
    kept = offset(now, start)
    naive = Adapter(torch.cat([now.down, start.down]), torch.cat([now.up, -start.up], dim=1), 8.0)

    def lost(adapter: Adapter) -> float:
        return float((adapter.to(torch.float16).change() - exact).norm() / exact.norm())

    torch.testing.assert_close(kept.change(), exact, rtol=0, atol=1e-6)
    assert lost(kept) < 5e-4
    assert lost(naive) > 0.1


def test_a_file_that_lost_the_small_change_does_not_pass(tiny: Tiny, tmp_path: Path) -> None:
    """Though it is small beside the factors that it is a change of."""
    from eridiff.lora.verify import difference

    denoiser, injected = started(tiny, "pissa")
    move(denoiser, 1e-3)
    for adapter in injected.lora(lora_state(denoiser)).layers.values():
        half = adapter.up.clone()
        half[:, :4] = 0
        error, allowed = difference(adapter, Adapter(adapter.down, half, adapter.alpha), torch.float16)
        assert error > allowed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "pissa", "conv": 4}, "that convolutions can have"),
        ({"init": "olora", "init_from": "some.safetensors"}, "starts from the base's weights"),
        ({"init": "pissa_niter_0"}, "match pattern"),
    ],
)
def test_what_contradicts_itself_is_no_network(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network.model_validate(settings)


@pytest.mark.parametrize("init", INITS)
def test_a_rank_that_no_weight_has_is_an_error(tiny: Tiny, init: str) -> None:
    network = Network(linear=1000, init=init)
    with pytest.raises(RecipeError, match="no more than a weight has") as caught:
        inject(tiny.denoiser(), network, tiny.family, seed=1)
    assert caught.value.where == "network.init"
