from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo

from eridiff.devices import find_device
from eridiff.encoding import compiling
from eridiff.encoding.compiling import compile_text_encoders, compile_vae, sizes_to_compile
from eridiff.encoding.latents import LatentEncoder, encode_latents
from eridiff.encoding.spaces import base_of
from eridiff.encoding.text import encode_texts
from eridiff.encoding.wanted import wanted_latents
from eridiff.families.vae_attention import use_products
from eridiff.store.parts import Item
from eridiff.tensors import from_stored
from tests.encoding.world import World

CAPTIONS = {f"key-{number}": f"caption {'long ' * number}" for number in range(5)}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A backend that runs graphs as they are; gives how many operations each had."""
    torch._dynamo.reset()
    graphs: list[int] = []

    def noted(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    for name in ("compile_vae", "compile_text_encoders"):
        defaults = dict(getattr(compiling, name).__kwdefaults__) | {"backend": noted}
        monkeypatch.setattr(getattr(compiling, name), "__kwdefaults__", defaults)
    yield graphs
    torch._dynamo.reset()


def all_of(batches: Iterator[Mapping[str, Item | str]]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for outcomes in batches:
        for key, item in outcomes.items():
            assert isinstance(item, Item)
            found[key] = {name: from_stored(stored) for name, stored in item.tensors.items()}
    return found


def assert_alike(
    found: dict[str, dict[str, torch.Tensor]], wanted: dict[str, dict[str, torch.Tensor]]
) -> None:
    assert found.keys() == wanted.keys()
    for key, tensors in found.items():
        torch.testing.assert_close(tensors, wanted[key], rtol=1e-4, atol=1e-5)


def test_a_compiled_t5_gives_the_same_and_compiles_no_batch_again(world: World, compiled: list[int]) -> None:
    def load(dtype: torch.dtype) -> Any:
        encoders = world.text_encoders(dtype)
        assert (compile_text_encoders(encoders) > 0) == (world.family.name != "sdxl")
        return encoders

    how = {"device": torch.device("cpu"), "dtype": torch.float32, "batch_size": 2}
    plain = all_of(encode_texts(world.family, world.text_encoders, CAPTIONS, **how))
    found = all_of(encode_texts(world.family, load, CAPTIONS, fill_batches=True, **how))
    assert_alike(found, plain)
    # The first layer makes the relative positions' bias, and all others share their code.
    assert len(compiled) == (0 if world.family.name == "sdxl" else 2)


def test_a_compiled_vae_gives_the_same_and_compiles_each_size_once(world: World, compiled: list[int]) -> None:
    jobs = [*wanted_latents(world.snapshot).values()]
    counts = Counter(job.size for job in jobs)
    sizes = {size for size, _ in counts.most_common(2)}
    assert len(counts) > len(sizes)
    assert any(counts[size] % 3 for size in sizes)  # batches that have to be filled up

    def encoded(vae: Any, **how: Any) -> dict[str, dict[str, torch.Tensor]]:
        encoder = LatentEncoder(world.family, vae, 4096)
        return all_of(encode_latents(encoder, world.images, jobs, batch_size=3, **how))

    vae = world.vae()
    use_products(vae)  # as on a GPU
    compile_vae(vae, sizes)
    assert_alike(encoded(vae, fill_batches_of=sizes), encoded(world.vae()))
    assert len(compiled) == len(sizes)


def test_sizes_of_many_images_are_compiled_for_but_none_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few, tall = (1024, 1024), (768, 1344), (2048, 1024)
    images = [*[many] * 1500, *[few] * 1499, *[tall] * 1500]

    def chosen(wanted: Any, device: str) -> frozenset[tuple[int, int]]:
        return sizes_to_compile(wanted, images, device=torch.device(device), tile_above_px=1536)

    assert chosen(True, "cpu") == {many, few}
    assert chosen(False, "cuda") == chosen("auto", "cpu") == frozenset()
    monkeypatch.setattr("eridiff.devices.has_triton", lambda device: True)
    assert chosen("auto", "cuda") == {many}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_starting_a_batch_of_images_waits_for_nothing(world: World) -> None:
    device = find_device("cuda")
    vae = world.family.load_vae(base_of(world.recipe), device=device, dtype=torch.float32)
    encoder = LatentEncoder(world.family, vae, 4096)
    pixels = [np.full((96, 128, 3), level, np.uint8) for level in (0, 100, 255)]
    wanted = encoder.start(pixels)()
    try:
        torch.cuda.set_sync_debug_mode("error")
        finish = encoder.start(pixels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for found, row in zip(finish(), wanted, strict=True):
        assert found is not None
        assert row is not None
        torch.testing.assert_close(found.mean, row.mean)


@pytest.mark.gpu
@pytest.mark.parametrize("fill_batches", [False, True])
def test_on_a_gpu_text_and_latents_are_those_of_the_cpu(world: World, fill_batches: bool) -> None:
    device, base, jobs = (
        find_device("cuda"),
        base_of(world.recipe),
        [*wanted_latents(world.snapshot).values()],
    )

    def load(dtype: torch.dtype) -> Any:
        encoders = world.family.load_text_encoders(base, device=device, dtype=dtype)
        if fill_batches:
            compile_text_encoders(encoders)
        return encoders

    def latents(vae: Any, sizes: Any = ()) -> dict[str, dict[str, torch.Tensor]]:
        encoder = LatentEncoder(world.family, vae, 4096)
        return all_of(encode_latents(encoder, world.images, jobs, batch_size=2, fill_batches_of=sizes))

    how = {"dtype": torch.float32, "batch_size": 2}
    on_cpu = encode_texts(world.family, world.text_encoders, CAPTIONS, device=torch.device("cpu"), **how)
    on_gpu = encode_texts(world.family, load, CAPTIONS, device=device, fill_batches=fill_batches, **how)
    found, wanted = all_of(on_gpu), all_of(on_cpu)
    vae = world.family.load_vae(base, device=device, dtype=torch.float32)
    sizes = {job.size for job in jobs} if fill_batches else set()
    compile_vae(vae, sizes)
    for made, reference in ((found, wanted), (latents(vae, sizes), latents(world.vae()))):
        assert made.keys() == reference.keys()
        for key, tensors in made.items():
            for name, tensor in tensors.items():
                apart = (tensor - reference[key][name]).norm() / reference[key][name].norm().clamp(min=1e-6)
                assert float(apart) < 5e-3  # TF32's products
