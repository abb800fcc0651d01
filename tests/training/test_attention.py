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


def test_cudnn_is_never_chosen() -> None:
    assert not any(torch.nn.attention.SDPBackend.CUDNN_ATTENTION in choice for choice in BACKENDS.values())


def test_the_backends_of_a_cpu_agree_with_plain_products(world: World) -> None:
    denoiser, parameters = make_denoiser(world)
    found = check_gradients(
        world.family, denoiser, parameters, one_batch(world), backend="auto", dtype=torch.float32
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
            any_world.family, denoiser, parameters, one_batch(any_world), backend="flash", dtype=torch.float32
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
        *(torch.randn(1, 4, 16, 16, generator=torch.Generator()) for _ in range(2)),
        large.t,
        large.cond,
    )
    check_gradients(any_world.family, denoiser, parameters, large, backend="auto", dtype=torch.float32)
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
    world: World, backend: str, dtype: torch.dtype
) -> None:
    cuda = torch.device("cuda")
    denoiser, _ = make_denoiser(world)
    denoiser.to(cuda)
    parameters = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    check_gradients(
        world.family, denoiser, parameters, one_batch(world).to(cuda), backend=backend, dtype=dtype
    )
