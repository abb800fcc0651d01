from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eridiff.compiler_errors import compiler_errors
from eridiff.errors import ModelError


def compiled(backend: Callable[..., object]) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(lambda x: x + 1, backend=backend)


def fails(*_inputs: object) -> object:
    raise RuntimeError("ld: cannot find -lcuda\nand much more")


def test_a_failure_of_the_compiler_names_the_setting() -> None:
    run = compiled(fails)
    with pytest.raises(ModelError) as raised, compiler_errors("train.compile"):
        run(torch.ones(2))
    assert raised.value.where == "train.compile"
    assert "cannot find -lcuda" in str(raised.value.found)
    assert "and much more" not in str(raised.value)
    assert raised.value.fix is not None
    assert "set train.compile: false" in raised.value.fix


def test_what_compiled_code_itself_raises_stays_what_it_is() -> None:
    def out_of_memory(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        def run(*_tensors: Tensor) -> object:
            raise torch.OutOfMemoryError("full")

        return run

    run = compiled(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError), compiler_errors("train.compile"):
        run(torch.ones(2))
    with pytest.raises(ValueError, match="mine"), compiler_errors("train.compile"):
        raise ValueError("mine")
