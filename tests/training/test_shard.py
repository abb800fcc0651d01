"""Blocks in parts, one a process: what each keeps, and what comes of the parts together."""

from __future__ import annotations

import pytest
import torch

from eridiff.families.frozen.keep import Keep, Quantization, blocks_of, weight_bytes
from eridiff.training import shard as module
from eridiff.training.distributed import Processes
from eridiff.training.shard import Share, keep_share
from tests.training.conftest import CPU, World, make_denoiser
from tests.training.test_visiting import batch_of, equal, gradients


def shares(world: World, count: int, quantize: Quantization = "none") -> list[Share]:
    """What each of `count` processes keeps of a base of its own."""
    blocks = world.family.checkpoint.blocks
    denoisers = [make_denoiser(world, keep=Keep(quantize))[0] for _ in range(count)]
    return [
        keep_share(denoiser, blocks, Processes(rank, count, CPU, rank, count))
        for rank, denoiser in enumerate(denoisers)
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_together_compute_what_the_whole_does_to_the_bit(
    any_world: World, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(any_world)
    denoiser, parameters = make_denoiser(any_world)
    wanted = gradients(any_world, denoiser, parameters, batch)
    others = [share.memory for share in shares(any_world, count)]
    share = keep_share(denoiser, any_world.family.checkpoint.blocks, Processes(0, count, CPU, 0, count))
    monkeypatch.setattr(module, "_exchanged", lambda memory, us: [memory, *others[1:]])
    share.open(Processes(0, count, CPU, 0, count))
    for _ in range(2):
        assert equal(gradients(any_world, denoiser, parameters, batch), wanted)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_process_keeps_its_part_of_the_blocks_and_no_more(world: World, quantize: Quantization) -> None:
    blocks = world.family.checkpoint.blocks
    shapes = {name: tuple(value.shape) for name, value in make_denoiser(world)[0].state_dict().items()}
    frozen = {name: shape for name, shape in shapes.items() if "lora" not in name}
    sizes = weight_bytes(
        {name.replace(".base_layer", ""): shape for name, shape in frozen.items()},
        blocks,
        Keep(quantize),
        item_bytes=4,
    )
    whole = sum(size for block, size in sizes.items() if block is not None)
    (half, other) = shares(world, 2, quantize)
    assert half.memory.nbytes == other.memory.nbytes == pytest.approx(whole / 2, rel=0.1)
    names = blocks_of(frozen, blocks)
    assert len(half.modules) == len(names)
    for block in half.modules:
        for tensor in (*block.parameters(), *block.buffers()):
            assert tensor.requires_grad or tensor.untyped_storage().nbytes() <= 8, "nothing else is kept"


def test_names_shapes_and_types_of_weights_stay(any_world: World) -> None:
    denoiser, _ = make_denoiser(any_world)
    wanted = {name: (value.shape, value.dtype) for name, value in denoiser.state_dict().items()}
    keep_share(denoiser, any_world.family.checkpoint.blocks, Processes(1, 2, CPU, 1, 2))
    assert {name: (value.shape, value.dtype) for name, value in denoiser.state_dict().items()} == wanted


def test_a_machine_shares_among_its_own_processes() -> None:
    assert Processes(5, 8, CPU, local_rank=1, local_size=4).neighbours == range(4, 8)
    assert Processes(0, 1, CPU).neighbours == range(1)
    assert module._exchanged(torch.arange(3), Processes(0, 1, CPU))[0].tolist() == [0, 1, 2]
