"""Blocks that visit the device train exactly as blocks that live there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eridiff.families.frozen.keep import away, blocks_of
from eridiff.training import visiting as module
from eridiff.training.batches import Batches, Draws
from eridiff.training.compiling import compile_blocks
from eridiff.training.offload import offload_blocks
from eridiff.training.order import Draw
from eridiff.training.recompute import recompute
from eridiff.training.step import Batch, losses
from tests.training.conftest import CPU, World, make_denoiser

CUDA = torch.device("cuda")
_BIT_FLIPS = 0x5A


def batch_of(world: World) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    return maker.batch(0, [Draw(sample.sample_id, 0) for sample in world.samples[:2]])


def gradients(
    world: World, denoiser: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch
) -> list[Tensor]:
    loss = losses(world.family, denoiser, batch).weighted.sum()
    return list(torch.autograd.grad(loss, list(parameters.values())))


def offloaded(world: World, denoiser: nn.Module, share: float, device: torch.device = CPU) -> int:
    return offload_blocks(denoiser, world.family.checkpoint.blocks, share, device)


def equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_gradients_are_those_of_a_plain_run_to_the_bit(
    world: World, share: float, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(world)
    denoiser, parameters = make_denoiser(world)
    wanted = gradients(world, denoiser, parameters, batch)
    # What lies at home is made useless, so that whoever computes with it instead of a copy is found out.
    sent = module.Carrier._sent

    def deciphered(self: Any, number: int) -> Any:
        parcel = sent(self, number)
        parcel.copy.bitwise_xor_(_BIT_FLIPS)
        return parcel

    monkeypatch.setattr(module.Carrier, "_sent", deciphered)
    blocks = blocks_of((name for name, _ in denoiser.named_modules()), world.family.checkpoint.blocks)
    assert offloaded(world, denoiser, share) == len(away(blocks, share)) > 0
    if checkpointed:
        recompute(denoiser)
    for name in away(blocks, share):
        forward: Any = denoiser.get_submodule(name).forward
        forward.carrier._homes[forward._number]._memory.bitwise_xor_(_BIT_FLIPS)
    for _ in range(3):  # from the second pass on, blocks are sent for ahead of time
        assert equal(gradients(world, denoiser, parameters, batch), wanted)
    with torch.no_grad():
        again = losses(world.family, denoiser, batch).plain
    fresh, _ = make_denoiser(world)
    with torch.no_grad():
        assert torch.equal(again, losses(world.family, fresh, batch).plain)


def test_from_the_second_step_on_every_block_is_sent_for_ahead_and_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(world)
    denoiser, parameters = make_denoiser(world)
    count = offloaded(world, denoiser, 1.0)
    for _ in range(2):
        gradients(world, denoiser, parameters, batch)
    events: list[tuple[str, int]] = []
    sent, bring = module.Carrier._sent, module.Carrier.bring

    def noted_sent(self: Any, number: int) -> Any:
        events.append(("sent", number))
        return sent(self, number)

    def noted_bring(self: Any, number: int) -> Any:
        events.append(("wanted", number))
        ready = self._coming is not None and self._coming.number == number
        assert ready, f"block {number} had to be waited for"
        return bring(self, number)

    monkeypatch.setattr(module.Carrier, "_sent", noted_sent)
    monkeypatch.setattr(module.Carrier, "bring", noted_bring)
    gradients(world, denoiser, parameters, batch)
    wanted = [number for what, number in events if what == "wanted"]
    assert sorted(wanted[:count]) == list(range(count))
    assert wanted[count:] == wanted[:count][::-1][: len(wanted) - count], "backward goes the other way"
    # The last block stays for its own backward pass, and the first, if it has one, for the next forward pass.
    assert sum(what == "sent" for what, _ in events) == len(wanted) - 1 - (len(wanted) == 2 * count)


def test_a_pass_that_is_recorded_receives_all_that_it_sends(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(any_world)
    denoiser, parameters = make_denoiser(any_world)
    offloaded(any_world, denoiser, 1.0)
    carrier = module.carrier_of(denoiser)
    assert carrier is not None
    sent, passes = module.Carrier._sent, []

    def noted(self: Any, number: int) -> Any:
        passes[-1].append(number)
        return sent(self, number)

    monkeypatch.setattr(module.Carrier, "_sent", noted)
    for _ in range(4):
        passes.append([])
        gradients(any_world, denoiser, parameters, batch)
        carrier.rest()
        assert carrier._coming is None
    assert passes[2] == passes[3] == sorted(set(passes[3])) + sorted(set(passes[3]) - {max(passes[3])})[::-1]


def test_trained_parameters_and_the_names_of_all_stay(any_world: World) -> None:
    denoiser, parameters = make_denoiser(any_world)
    state = {name: value.clone() for name, value in denoiser.state_dict().items()}
    places = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    offloaded(any_world, denoiser, 1.0)
    assert {name: parameter.data_ptr() for name, parameter in parameters.items()} == places
    found = denoiser.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_pass_that_breaks_off_leaves_all_weights_at_home(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(any_world)
    denoiser, parameters = make_denoiser(any_world)
    wanted = gradients(any_world, denoiser, parameters, batch)
    offloaded(any_world, denoiser, 1.0)
    blocks = blocks_of((name for name, _ in denoiser.named_modules()), any_world.family.checkpoint.blocks)
    last: Any = denoiser.get_submodule(blocks[-1])
    whole = last.forward._forward

    def scarce(*args: Any, **named: Any) -> Any:
        whole(*args, **named)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(last.forward, "_forward", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        gradients(any_world, denoiser, parameters, batch)
    monkeypatch.undo()
    for name in blocks:
        forward: Any = denoiser.get_submodule(name).forward
        home = forward.carrier._homes[forward._number]
        ours, places = home._memory.untyped_storage().data_ptr(), home.stretch._places
        assert all(place.names[place.name] is place.tensor for place in places)
        assert all(place.tensor.untyped_storage().data_ptr() == ours for place in places)
    assert equal(gradients(any_world, denoiser, parameters, batch), wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_can_be_kept_away(any_world: World) -> None:
    torch._dynamo.reset()
    batch = batch_of(any_world)
    denoiser, parameters = make_denoiser(any_world)
    compile_blocks(denoiser, any_world.family.blocks, backend="aot_eager")
    wanted = gradients(any_world, denoiser, parameters, batch)
    offloaded(any_world, denoiser, 1.0)
    for _ in range(2):
        found = gradients(any_world, denoiser, parameters, batch)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    torch._dynamo.reset()
