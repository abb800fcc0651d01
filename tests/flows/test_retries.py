from __future__ import annotations

import pytest

from eridiff.errors import DataError, DoesNotFit, Interrupted, ModelError, StoreError, Unreachable
from eridiff.recipe import Recipe
from flows.retries import may_pass, ran_out_of_memory, smaller_batches
from tests.flows.doubles import OutOfMemoryError


@pytest.mark.parametrize("error", [OSError("I/O error"), TimeoutError(), Unreachable("no answer")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error", [DataError("bad"), StoreError("damaged"), Interrupted("stopped"), ValueError("wrong")]
)
def test_what_cannot_pass_is_not(error: Exception) -> None:
    assert not may_pass(error)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        DoesNotFit("A training step does not fit into the device's memory."),
        OutOfMemoryError("CUDA out of memory"),
        caused(RuntimeError("a worker failed"), DoesNotFit("not even one item")),
    ],
)
def test_too_little_memory_is_known_however_it_is_told(error: Exception) -> None:
    assert ran_out_of_memory(error)


def test_a_model_that_cannot_be_used_is_no_lack_of_memory() -> None:
    assert not ran_out_of_memory(ModelError("the loss is not finite"))


@pytest.mark.parametrize(
    ("batch_size", "smaller"),
    [
        (6, {"train.batch_size": 3, "train.gradient_accumulation_steps": 4}),
        (3, {}),
        (1, {}),
    ],
)
def test_a_training_batch_is_halved_where_a_step_then_sees_as_many_samples(
    batch_size: int, smaller: dict[str, int]
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "model": {"family": "sdxl", "base": "b"},
            "datasets": [{"folder_path": "images"}],
            "train": {"batch_size": batch_size, "gradient_accumulation_steps": 2},
        }
    )
    assert smaller_batches("train", recipe) == smaller


def test_encoders_halve_their_batches_by_themselves() -> None:
    sections = {
        "name": "a",
        "model": {"family": "sdxl", "base": "b"},
        "datasets": [{"folder_path": "images"}],
    }
    recipe = Recipe.model_validate(sections)
    assert smaller_batches("precompute", recipe) == {}
    assert set(smaller_batches("evaluate", recipe)) <= {"sample.batch_size", "validation.batch_size"}
