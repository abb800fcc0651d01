from __future__ import annotations

import pytest
import torch

from eridiff.errors import ModelError
from eridiff.training import attention as module
from eridiff.training.attention import BACKENDS, attention, check_gradients, gradient
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


def test_cudnn_is_never_chosen() -> None:
    assert not any(torch.nn.attention.SDPBackend.CUDNN_ATTENTION in choice for choice in BACKENDS.values())


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
    assert "train.attention: efficient or math" in str(caught.value)


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
    assert "16x16 does not fit into memory: checking gradients at 8x8" in caplog.text


def test_a_backend_that_cannot_run_is_a_clear_error() -> None:
    query = torch.ones(1, 1, 4, 8, requires_grad=True)
    with pytest.raises(ModelError, match="'efficient' cannot run"), attention("efficient"):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "efficient"])
def test_gradients_on_the_gpu_agree_with_plain_products(
    larger_world: World, backend: str, dtype: torch.dtype
) -> None:
    cuda = torch.device("cuda")
    denoiser, parameters = make_denoiser(larger_world, cuda, dtype)
    batch = one_batch(larger_world).to(cuda)
    run = run_under(larger_world, denoiser, parameters, backend)
    check_gradients(larger_world.family, denoiser, parameters, batch, run, backend=backend, dtype=dtype)


@pytest.mark.gpu
def test_the_check_finds_a_backend_whose_gradients_are_wrong_or_it_is_right(
    larger_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN, as torch would choose it: refused, or its gradients do agree; never trained on unseen."""
    cuda, dtype = torch.device("cuda"), torch.bfloat16
    denoiser, parameters = make_denoiser(larger_world, cuda, dtype)
    batch = one_batch(larger_world).to(cuda)
    monkeypatch.setitem(BACKENDS, "cudnn", (torch.nn.attention.SDPBackend.CUDNN_ATTENTION,))
    found, wanted = (
        gradient(larger_world.family, denoiser, parameters, batch, backend=name) for name in ("cudnn", "math")
    )
    run = run_under(larger_world, denoiser, parameters, "cudnn")
    agrees = bool((found - wanted).norm() <= 0.1 * wanted.norm())
    if agrees:
        check_gradients(larger_world.family, denoiser, parameters, batch, run, backend="cudnn", dtype=dtype)
    else:
        with pytest.raises(ModelError, match="wrong gradients"):
            check_gradients(
                larger_world.family, denoiser, parameters, batch, run, backend="cudnn", dtype=dtype
            )
