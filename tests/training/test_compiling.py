from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eridiff.families.attention.projections import projected
from eridiff.lora.forward import compute_in_input_precision, join_projections, lora_forwards
from eridiff.lora.rounding import Rounding
from eridiff.recipe import Train
from eridiff.training.batches import Batches, Draws
from eridiff.training.compiling import compile_blocks, eagerly, num_compiled
from eridiff.training.distributed import Processes
from eridiff.training.flat import FlatParameters
from eridiff.training.order import Draw
from eridiff.training.passes import Passes
from eridiff.training.recompute import recomputing
from eridiff.training.step import Batch, losses
from tests.training.conftest import CPU, PROJECTIONS, World, make_denoiser

# Dynamo looks at `.grad` of whatever it meets.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
SQUARES, WIDES = range(5), range(5, 8)


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch_of(world: World, numbers: range) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    return maker.batch(0, [Draw(world.samples[number].sample_id, 0) for number in numbers])


def gradients(world: World, denoiser: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch) -> Tensor:
    loss = losses(world.family, denoiser, batch).weighted.sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters.values()))])


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(world: World) -> None:
    denoiser, parameters = make_denoiser(world)
    batch = batch_of(world, SQUARES[:2])
    wanted = gradients(world, denoiser, parameters, batch)
    names = list(denoiser.state_dict())
    num_blocks = compile_blocks(denoiser, world.family.blocks, backend="aot_eager")
    assert list(denoiser.state_dict()) == names
    found = gradients(world, denoiser, parameters, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert 0 < num_compiled() <= num_blocks


@pytest.mark.slow
def test_few_graphs_serve_all_shapes(any_world: World) -> None:
    denoiser, parameters = make_denoiser(any_world)
    compile_blocks(denoiser, any_world.family.blocks, backend="aot_eager")
    graphs = []
    for numbers in (SQUARES[:4], WIDES, SQUARES[:3], WIDES[:2]):
        gradients(any_world, denoiser, parameters, batch_of(any_world, numbers))
        graphs.append(num_compiled())
    assert graphs[1] > graphs[0]
    assert graphs[-1] == graphs[1], "both sizes are left open once both have changed"


def test_compiled_blocks_can_be_recomputed_and_run_eagerly(any_world: World) -> None:
    denoiser, parameters = make_denoiser(any_world)
    batch = batch_of(any_world, SQUARES[:2])
    wanted = gradients(any_world, denoiser, parameters, batch)
    compile_blocks(denoiser, any_world.family.blocks, backend="aot_eager")
    with eagerly():
        assert torch.equal(gradients(any_world, denoiser, parameters, batch), wanted)
    assert num_compiled() == 0
    with recomputing(denoiser):
        found = gradients(any_world, denoiser, parameters, batch)
    assert num_compiled() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.slow
def test_compiled_passes_in_joint_products_learn_the_same(world: World) -> None:
    found = []
    for compiled in (False, True):
        denoiser, parameters = make_denoiser(world, targets=PROJECTIONS)
        flat = FlatParameters(parameters, num_extra=2)
        passes = Passes(world.family, denoiser, flat, Train(dtype="fp32"), Processes(0, 1, CPU))
        if compiled:
            compile_blocks(denoiser, world.family.blocks, backend="aot_eager")
        for numbers in (SQUARES[:2], WIDES, SQUARES[:3]):
            passes.fill([batch_of(world, numbers)], len(numbers))
            found.append(flat.gradients.clone())
    before = num_compiled()
    passes.fill([batch_of(world, SQUARES[:3])], 3)
    assert num_compiled() == before, "what was compiled serves the next pass, too"
    blocks = [module for module in denoiser.modules() if type(module).__name__ in world.family.blocks]
    assert 0 < num_compiled() <= 2 * len(blocks)
    for wanted, gradient in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


class Block(nn.Module):
    """Attention's projections, and a layer after them."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)
        self.to_out = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_out(torch.cat(projected(self, x, "to_q", "to_k", "to_v"), dim=-1))


@pytest.mark.parametrize("joined", [False, True])
def test_blocks_with_lora_share_their_code(joined: bool) -> None:
    model = nn.Sequential(*(Block() for _ in range(4))).requires_grad_(False)
    layers = ["to_q", "to_k", "to_v", "to_out"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=layers), model)
    compute_in_input_precision(model)
    if joined:
        join_projections(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    flat = FlatParameters(parameters, num_extra=0)
    rounding = Rounding(lora_forwards(model), flat.values, flat.gradients, torch.float32)
    compile_blocks(model, ("Block",), backend="aot_eager")
    for _ in range(2):
        with rounding.ahead():
            model(torch.ones(3, 8, requires_grad=True)).sum().backward()
    assert num_compiled() == 1


def test_sizes_left_open_are_not_analysed_for_how_reads_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    analysed = []

    def noted(graph: torch.fx.GraphModule, _inputs: object, *, config_patches: dict[str, object]) -> object:
        analysed.append(config_patches.get("triton.coalesce_tiling_analysis", True))
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", noted)
    model = nn.Sequential(Block())
    compile_blocks(model, ("Block",))
    for num_rows in (3, 5, 7):
        model(torch.ones(num_rows, 8))
    assert analysed == [True, False]


def test_a_denoiser_without_such_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no block is a Block"):
        compile_blocks(nn.Linear(2, 2), ("Block",))
