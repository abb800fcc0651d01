from __future__ import annotations

from typing import Any

import pytest
import torch

from eridiff.errors import DoesNotFit, ModelError
from eridiff.lora.forward import lora_forwards
from eridiff.recipe import Train
from eridiff.training import passes as module
from eridiff.training.batches import Batches, Draws
from eridiff.training.distributed import Processes
from eridiff.training.flat import FlatParameters
from eridiff.training.offload import offload_blocks
from eridiff.training.order import Draw
from eridiff.training.passes import Passes
from eridiff.training.step import Batch, losses
from eridiff.training.visiting import Carrier
from tests.training.conftest import CPU, PROJECTIONS, World, make_denoiser

ALONE = Processes(0, 1, CPU)


def batch_of(world: World) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    return maker.batch(0, [Draw(sample.sample_id, 0) for sample in world.samples[:2]])


def make_passes(world: World, **settings: Any) -> tuple[Passes, FlatParameters, Any]:
    denoiser, parameters = make_denoiser(world)
    chosen = Train.model_validate(settings)
    offload_blocks(denoiser, world.family.checkpoint.blocks, chosen.offload, CPU)
    flat = FlatParameters(parameters, num_extra=2)
    return Passes(world.family, denoiser, flat, chosen, ALONE), flat, denoiser


@pytest.mark.parametrize("targets", [("to_q", "to_v"), PROJECTIONS, (*PROJECTIONS, "ff.net.2", "conv1")])
def test_gradients_are_those_of_pefts_own_layers(world: World, targets: tuple[str, ...]) -> None:
    denoiser, parameters = make_denoiser(world, targets=targets)
    batch = batch_of(world)
    loss = losses(world.family, denoiser, batch).weighted.mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters.values()))])
    flat = FlatParameters(parameters, num_extra=2)
    passes = Passes(world.family, denoiser, flat, Train(dtype="fp32"), ALONE)
    joined = [product for product in lora_forwards(denoiser) if len(product.layers) > 1]
    assert bool(joined) == (len(targets) > 2)
    (told,) = passes.fill([batch], 2)
    assert float(told.mean()) == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(flat.gradients, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_step_of_two_batches_is_the_mean_over_all_samples(any_world: World) -> None:
    passes, flat, denoiser = make_passes(any_world)
    batch = batch_of(any_world)
    told = passes.fill([batch.only(0), batch.only(1)], 2)
    apart = flat.summed.clone()
    passes.fill([batch], 2)
    torch.testing.assert_close(apart, flat.summed, rtol=1e-4, atol=1e-7)
    mean = losses(any_world.family, denoiser, batch).plain.mean().item()
    assert float(flat.extra[1]) == pytest.approx(mean, rel=1e-5)
    assert [len(values) for values in told] == [1, 1]


def test_a_shortage_of_memory_turns_recomputing_on_once_and_is_told_the_second_time(
    any_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passes, flat, denoiser = make_passes(any_world, gradient_checkpointing="auto")
    passes.fill([batch_of(any_world)], 2)
    wanted = flat.summed.clone()
    short = [2]

    def scarce(*args: Any) -> Any:
        if not denoiser.is_gradient_checkpointing and short[0]:
            flat.gradients.add_(1)  # what a backward pass leaves that broke off
            short[0] -= 1
            raise torch.OutOfMemoryError("no room")
        return losses(*args)

    monkeypatch.setattr(module, "losses", scarce)
    caplog.set_level("INFO", "eridiff")
    passes.fill([batch_of(any_world)], 2)
    assert denoiser.is_gradient_checkpointing
    assert "gradient checkpointing is on from here" in caplog.text
    torch.testing.assert_close(flat.summed, wanted)
    denoiser.disable_gradient_checkpointing()
    with pytest.raises(ModelError, match=r"does not fit .*(?s:.*)no room"):
        passes.fill([batch_of(any_world)], 2)


class Recordings:
    """Recordings that take too much: what a GPU's allocator says, without one."""

    settled = True

    def __call__(self, *_: Any) -> Any:
        raise torch.OutOfMemoryError("no room for a recording")

    def forget(self) -> None:
        self.settled = False


def test_recordings_that_do_not_fit_are_given_up_before_anything_else(
    any_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passes, flat, denoiser = make_passes(any_world, gradient_checkpointing="auto")
    passes.fill([batch_of(any_world)], 2)
    wanted = flat.summed.clone()
    recordings = Recordings()
    monkeypatch.setattr(passes, "_recorded", recordings)
    caplog.set_level("INFO", "eridiff")
    for _ in range(2):
        passes.fill([batch_of(any_world)], 2)
        torch.testing.assert_close(flat.summed, wanted)
    assert not recordings.settled
    assert caplog.text.count("one by one from here") == 1
    assert not denoiser.is_gradient_checkpointing


def test_a_shortage_before_anything_could_be_recorded_is_not_the_recordings(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, _, denoiser = make_passes(any_world, gradient_checkpointing="auto")
    recordings = Recordings()
    recordings.settled = False
    monkeypatch.setattr(passes, "_recorded", recordings)
    passes.fill([batch_of(any_world)], 2)
    assert denoiser.is_gradient_checkpointing


def test_what_must_be_left_over_counts(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, *_ = make_passes(any_world, gradient_checkpointing=False)
    empty = torch.empty

    def scarce(*size: Any, **how: Any) -> Any:
        if size == (12345,):
            raise torch.OutOfMemoryError("no room for the optimizer")
        return empty(*size, **how)

    monkeypatch.setattr(torch, "empty", scarce)
    with pytest.raises(DoesNotFit, match="no room for the optimizer"):
        passes.fill([batch_of(any_world)], 2, beside=12345)


def test_a_pass_that_breaks_off_receives_what_it_sent_for(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, *_ = make_passes(any_world, offload=1.0)
    for _ in range(2):
        passes.fill([batch_of(any_world)], 2)
    sent, received = [], []
    of_sent, of_received = Carrier._sent, Carrier._received

    def noted(self: Any, number: int) -> Any:
        sent.append(number)
        if len(sent) == 3:
            raise RuntimeError("broken off")
        return of_sent(self, number)

    def noted_received(self: Any, parcel: Any) -> Any:
        received.append(parcel.number)
        return of_received(self, parcel)

    monkeypatch.setattr(Carrier, "_sent", noted)
    monkeypatch.setattr(Carrier, "_received", noted_received)
    with pytest.raises(RuntimeError, match="broken off"):
        passes.fill([batch_of(any_world)], 2)
    assert received == sent[:2]
    passes.fill([batch_of(any_world)], 2)


def test_checkpointing_that_was_refused_stays_off(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, _, denoiser = make_passes(any_world, gradient_checkpointing=False)

    def scarce(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(module, "losses", scarce)
    with pytest.raises(ModelError, match="gradient_checkpointing: auto"):
        passes.fill([batch_of(any_world)], 2)
    assert not denoiser.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [({"steps": 100}, True), ({"steps": 99}, False), ({"steps": 100, "compile": False}, False)],
)
def test_long_runs_are_compiled_by_themselves(
    world: World, settings: dict[str, Any], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("eridiff.devices.has_triton", lambda _device: True)
    monkeypatch.setattr(module, "compile_blocks", lambda *arguments: asked.append(arguments))
    make_passes(world, **settings)
    assert bool(asked) == compiled
