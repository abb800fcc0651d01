from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
from torch.nn.attention import current_flash_attention_impl

from eridiff.errors import ModelError
from eridiff.recipe import Train
from eridiff.training import attention as module
from eridiff.training.attention import BACKENDS, attention, backends, check_gradients, gradient
from eridiff.training.batches import Batches, Draws
from eridiff.training.order import Draw
from eridiff.training.step import Batch
from tests.training.conftest import World, make_denoiser


def one_batch(world: World, number: int = 0) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    return maker.batch(0, [Draw(world.samples[number].sample_id, 0)])


def two_batch(world: World) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    return maker.batch(0, [Draw(world.samples[number].sample_id, 0) for number in (0, 1)])


def run_under(world: World, denoiser, parameters, backend: str):
    """The gradient as check_gradients is given it, from the module so that tests can spoil it."""
    return lambda batch: module.gradient(world.family, denoiser, parameters, batch, backend=backend)


@pytest.mark.parametrize(
    ("capability", "order"), [((8, 9), "flash efficient math"), ((9, 0), "cudnn flash efficient math")]
)
def test_auto_begins_with_cudnn_where_that_is_fastest(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], order: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert backends("auto") == tuple(BACKENDS[name][0] for name in order.split())
    assert all(backends(name) == BACKENDS[name] for name in BACKENDS if name != "auto")


def test_a_recipe_names_any_backend() -> None:
    for name in BACKENDS:
        assert Train.model_validate({"attention": name}).attention == name
    assert set(get_args(Train.model_fields["attention"].annotation)) == set(BACKENDS)


@pytest.mark.skipif(find_spec("flash_attn_interface") is not None, reason="FlashAttention-3 is installed")
def test_kernels_that_are_not_installed_are_told_with_the_package() -> None:
    with pytest.raises(ModelError, match=r"'flash3' is not installed(?s:.*)install flash-attn-3"):  # noqa: SIM117
        with attention("flash3"):
            pass
    assert current_flash_attention_impl() is None


def test_installed_kernels_run_inside_the_context_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Handle:
        def __init__(self, name: str) -> None:
            self.name = name
            events.append(f"+{name}")

        def remove(self) -> None:
            events.append(f"-{self.name}")

    kernels = {name: partial(Handle, name) for name in ("FA3", "FA4")}
    monkeypatch.setattr("torch.nn.attention._registry._FLASH_ATTENTION_IMPLS", kernels)
    with attention("flash3"):
        assert current_flash_attention_impl() == "FA3"
        with attention("flash4"), attention("math"):
            assert current_flash_attention_impl() == "FA4"
        assert current_flash_attention_impl() == "FA3"
    assert current_flash_attention_impl() is None
    assert events == ["+FA3", "-FA3", "+FA4", "-FA4", "+FA3", "-FA3"]


def test_the_backends_of_a_cpu_agree_with_plain_products(world: World) -> None:
    denoiser, parameters = make_denoiser(world)
    run = run_under(world, denoiser, parameters, "auto")
    found = check_gradients(
        world.family, denoiser, parameters, two_batch(world), run, backend="auto", dtype=torch.float32
    )
    assert 0 < found < 1e-4
    assert all(parameter.grad is None for parameter in parameters.values())
    assert not denoiser.is_gradient_checkpointing


@pytest.mark.parametrize("spoilt", [1.01, float("nan")])
def test_wrong_gradients_stop_the_run_and_say_what_to_set(
    any_world: World, monkeypatch: pytest.MonkeyPatch, spoilt: float
) -> None:
    denoiser, parameters = make_denoiser(any_world)

    def wrong(*args, backend: str, **named) -> torch.Tensor:
        return gradient(*args, backend=backend, **named) * (spoilt if backend == "flash" else 1)

    monkeypatch.setattr(module, "gradient", wrong)
    with pytest.raises(ModelError, match="wrong gradients") as caught:
        check_gradients(
            any_world.family,
            denoiser,
            parameters,
            one_batch(any_world),
            run_under(any_world, denoiser, parameters, "flash"),
            backend="flash",
            dtype=torch.float32,
        )
    assert "train.attention: flash, efficient or math" in str(caught.value)


def test_a_step_on_plain_attention_is_checked_too_since_it_may_be_compiled(any_world: World) -> None:
    denoiser, parameters = make_denoiser(any_world)
    right = run_under(any_world, denoiser, parameters, "math")
    batch = one_batch(any_world)

    def check(run) -> float:
        return check_gradients(
            any_world.family, denoiser, parameters, batch, run, backend="math", dtype=torch.float32
        )

    assert check(right) < 1e-5
    with pytest.raises(ModelError, match="wrong gradients") as caught:
        check(lambda batch: 1.01 * right(batch))
    assert "train.compile: false" in str(caught.value)


def test_plain_products_that_do_not_fit_are_checked_on_a_crop(
    any_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser, parameters = make_denoiser(any_world)
    sizes = []

    def small(family, denoiser, parameters, batch: Batch, **named) -> torch.Tensor:
        sizes.append(tuple(batch.clean.shape[-2:]))
        if batch.clean.shape[-1] > 8:
            raise torch.OutOfMemoryError("too large")
        return gradient(family, denoiser, parameters, batch, **named)

    monkeypatch.setattr(module, "gradient", small)
    caplog.set_level("INFO", "eridiff")
    large = one_batch(any_world)
    large = Batch(
        large.sample_ids,
        *(torch.randn(1, 16, 16, 16, generator=torch.Generator()) for _ in range(2)),
        large.t,
        large.cond,
    )
    run = run_under(any_world, denoiser, parameters, "auto")
    check_gradients(any_world.family, denoiser, parameters, large, run, backend="auto", dtype=torch.float32)
    assert sizes == [(16, 16), (8, 8), (8, 8)]
    assert "16x16 does not fit into memory: checking gradients at 8x8, and not those of comp" in caplog.text


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_a_backend_that_cannot_run_is_a_clear_error(name: str) -> None:
    query = torch.ones(1, 1, 4, 8, requires_grad=True)
    with pytest.raises(ModelError, match=f"'{name}' cannot run"), attention(name):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("auto", torch.float32),
        ("auto", torch.bfloat16),
        ("efficient", torch.float32),
        ("efficient", torch.bfloat16),
        ("flash", torch.bfloat16),
        ("cudnn", torch.bfloat16),
    ],
)
def test_gradients_on_the_gpu_agree_with_plain_products(
    larger_world: World, backend: str, dtype: torch.dtype
) -> None:
    cuda = torch.device("cuda")
    denoiser, parameters = make_denoiser(larger_world, cuda, dtype)
    batch = one_batch(larger_world).to(cuda)
    run = run_under(larger_world, denoiser, parameters, backend)
    check_gradients(larger_world.family, denoiser, parameters, batch, run, backend=backend, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cudnn", "flash"])
def test_float32_is_refused_by_name_where_a_kernel_has_none(name: str) -> None:
    query = torch.ones(1, 2, 64, 64, device="cuda", requires_grad=True)
    with pytest.raises(ModelError, match=f"'{name}' cannot run"), attention(name):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
