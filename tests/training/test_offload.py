"""Which blocks stay in system memory, and what of them is on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eridiff.families.frozen.keep import Keep, away, blocks_of
from eridiff.training.recompute import recompute
from eridiff.training.step import losses
from tests.training.conftest import World, make_denoiser
from tests.training.test_visiting import CUDA, batch_of, gradients, offloaded


def test_blocks_are_spread_evenly() -> None:
    blocks = [f"b.{number}" for number in range(8)]
    assert away(blocks, 0.0) == frozenset()
    assert away(blocks, 0.5) == {"b.0", "b.2", "b.4", "b.6"}
    assert away(blocks, 0.3) == {"b.0", "b.2", "b.5"}
    assert away(blocks, 1.0) == frozenset(blocks)
    assert away([], 1.0) == frozenset()


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_on_a_gpu_too_and_only_two_blocks_are_there_at_once(larger_world: World, quantize: Any) -> None:
    batch = batch_of(larger_world).to(CUDA)
    plain, parameters = make_denoiser(larger_world, CUDA, torch.bfloat16, Keep(quantize))
    recompute(plain)
    wanted = gradients(larger_world, plain, parameters, batch)
    denoiser, parameters = make_denoiser(larger_world, CUDA, torch.bfloat16, Keep(quantize, 1.0))
    blocks = blocks_of((name for name, _ in denoiser.named_modules()), larger_world.family.checkpoint.blocks)
    frozen = [
        tensor
        for name in blocks
        for module in denoiser.get_submodule(name).modules()
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not tensor.requires_grad and all(tensor.stride())  # layers in few bits have stand-ins for weights
    ]
    assert {tensor.device.type for tensor in frozen} == {"cpu"}
    offloaded(larger_world, denoiser, 1.0, CUDA)
    assert all(tensor.is_pinned() for tensor in frozen)
    assert len(blocks) > 2
    for number in range(4):  # the first pass foresees nothing, the second one sends for the first block
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            losses(larger_world.family, denoiser, batch)
        torch.cuda.synchronize()
        assert number < 2 or torch.cuda.memory_allocated() == before
    for _ in range(3):
        found = gradients(larger_world, denoiser, parameters, batch)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))
