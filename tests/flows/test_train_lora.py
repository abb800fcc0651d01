from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from eridiff.errors import DataError, DoesNotFit, Interrupted
from eridiff.recipe import Recipe
from flows.train_lora import train_lora
from stages.stage import stopping
from tests.flows.doubles import Doubles, OutOfMemoryError, failing, recorded

ALL_STAGES = {"ingest", "precompute", "train", "evaluate"}


def test_stages_run_in_order_and_a_second_run_does_nothing(doubles: Doubles) -> None:
    outputs = train_lora(doubles.config)
    assert [call[0] for call in doubles.calls] == ["ingest", "precompute", "precompute", "train", "evaluate"]
    assert Path(outputs["grid"]).is_file()
    assert recorded(doubles.folder, "ingest")["done"] == 1
    doubles.calls.clear()
    state = train_lora(doubles.config, return_state=True)
    assert state.is_completed()
    assert state.message == "Nothing to do: every stage is finished."
    assert not doubles.calls


def test_only_what_is_missing_runs(doubles: Doubles) -> None:
    doubles.done |= {"ingest", "precompute", "train"}
    train_lora(doubles.config)
    assert [call[0] for call in doubles.calls] == ["evaluate"]


def test_overrides_reach_the_stages_and_wrong_ones_are_refused(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"train"}
    train_lora(doubles.config, overrides={"train": {"steps": 7}})
    assert doubles.calls == [("train", 4, 7)]
    with pytest.raises(Exception, match="rnak"):
        train_lora(doubles.config, overrides={"network": {"rnak": 7}})


@pytest.mark.parametrize("workers", ["here", "threads"])
def test_precompute_is_cut_into_parts(doubles: Doubles, workers: Any) -> None:
    doubles.done |= ALL_STAGES - {"precompute"}
    train_lora(doubles.config, parts=2, workers=workers)
    assert sorted(doubles.calls) == sorted(
        ("precompute", half, (index, 2)) for half in ("latents", "text") for index in (1, 2)
    )


def test_what_stages_log_is_in_the_runs_log(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"train"}
    state = train_lora(doubles.config, return_state=True)
    messages: list[str] = []
    with get_client(sync_client=True) as client:
        for _ in range(50):
            wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
            messages = [log.message for log in client.read_logs(log_filter=wanted)]
            if any("train: 1 done" in message for message in messages):
                break
            time.sleep(0.1)
    assert "the double of train speaks" in messages
    assert any(message.startswith("train: 1 done, 0 reused") for message in messages)


def test_an_input_output_error_is_tried_again(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"ingest"}
    doubles.acts["ingest"] = failing(OSError("stale file handle"))
    assert train_lora(doubles.config, return_state=True).is_completed()
    assert len(doubles.calls) == 2


@pytest.mark.parametrize("error", [DataError("no captions at all"), ZeroDivisionError("a bug")])
def test_bad_input_and_bugs_are_not(doubles: Doubles, error: Exception) -> None:
    doubles.done |= ALL_STAGES - {"ingest"}
    doubles.acts["ingest"] = failing(error)
    with pytest.raises(type(error)):
        train_lora(doubles.config)
    assert len(doubles.calls) == 1


def test_a_training_that_does_not_fit_is_tried_once_with_a_smaller_batch(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"train", "evaluate"}
    doubles.acts["train"] = failing(DoesNotFit("A training step does not fit."))
    train_lora(doubles.config)
    assert doubles.calls == [("train", 4, 10), ("train", 2, 10), ("evaluate", 2, 10)]


def test_an_evaluation_that_runs_out_of_memory_is_tried_once_more(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"evaluate"}
    doubles.acts["evaluate"] = failing(OutOfMemoryError("CUDA out of memory"))
    train_lora(doubles.config)
    assert doubles.calls == [("evaluate", 4, 10)] * 2


def test_what_does_not_fit_twice_fails(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"train"}
    doubles.acts["train"] = failing(DoesNotFit("one"), DoesNotFit("two"))
    with pytest.raises(DoesNotFit, match="two"):
        train_lora(doubles.config)
    assert len(doubles.calls) == 2


def until_stopped(_recipe: Recipe) -> None:
    """A training that saves when it is asked to stop."""
    with stopping() as stop:
        for _ in range(400):
            if stop:
                raise Interrupted("Training was stopped.", fix="run it again")
            time.sleep(0.05)
    pytest.fail("nobody asked the training to stop")


def test_a_time_limit_lets_training_save(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"train"}
    doubles.acts["train"] = until_stopped
    started = time.monotonic()
    state = train_lora(doubles.config, time_limit_s=0.5, return_state=True)
    assert state.name == "TimedOut"
    assert "saved" in (state.message or "")
    assert time.monotonic() - started < 15
    assert len(doubles.calls) == 1


def test_ctrl_c_lets_training_save(doubles: Doubles) -> None:
    doubles.done |= ALL_STAGES - {"train"}
    doubles.acts["train"] = until_stopped_by(signal.SIGINT)
    with pytest.raises(Interrupted):
        train_lora(doubles.config)
    assert len(doubles.calls) == 1


def until_stopped_by(number: int) -> Callable[[Recipe], None]:
    def act(_recipe: Recipe) -> None:
        with stopping() as stop:
            os.kill(os.getpid(), number)
            while not stop:
                time.sleep(0.01)
            raise Interrupted("Training was stopped.")

    return act
