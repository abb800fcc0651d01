"""Which failures are worth another try: those that can pass, never bad input."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from eridiff.errors import DoesNotFit, EridiffError, Unreachable
from eridiff.recipe import Recipe

RETRIES = 2
DELAYS_S = [10.0, 60.0]


def may_pass(error: BaseException) -> bool:
    """Whether a failure may pass by itself: I/O errors may, bad input and a request to stop never do."""
    return isinstance(error, Unreachable) or (
        isinstance(error, OSError) and not isinstance(error, EridiffError)
    )


def retry_if_it_may_pass(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """Prefect's question before it runs a failed task again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and may_pass(error)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory; torch's error by its name, since flows never import it."""
    return any(
        isinstance(cause, DoesNotFit) or type(cause).__name__ == "OutOfMemoryError"
        for cause in _causes(error)
    )


def smaller_batches(stage: str, recipe: Recipe) -> dict[str, int]:
    """Overrides that need less memory; empty where no batch can be halved.

    A training batch is halved and accumulated twice: a step sees as many samples, though other ones, since
    batches are cut otherwise. So it is another run, which begins anew. Batches of grids and of the hold-out
    decide nothing; precompute halves its own.
    """
    if stage == "precompute":
        return {}
    if stage == "train":
        if recipe.train.batch_size % 2:
            return {}
        return {
            "train.batch_size": recipe.train.batch_size // 2,
            "train.gradient_accumulation_steps": 2 * recipe.train.gradient_accumulation_steps,
        }
    sizes = {
        "sample.batch_size": recipe.sample.batch_size,
        "validation.batch_size": recipe.validation.batch_size,
    }
    return {key: size // 2 for key, size in sizes.items() if size > 1}


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
