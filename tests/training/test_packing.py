from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from eridiff.training.packing import pack, unpack


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adafactor", "RMSprop", "NAdam", "RAdam"])
def test_an_optimizer_goes_on_from_its_packed_state_as_if_nothing_happened(kind: str) -> None:
    def fresh() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        extra = {"momentum": 0.9} if kind == "SGD" else {}
        return parameter, getattr(torch.optim, kind)([parameter], lr=0.05, **extra)

    def walk(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()

    straight, optimizer = fresh()
    walk(straight, optimizer, 3)
    tensors, skeleton = pack(optimizer.state_dict())
    middle = straight.detach().clone()
    walk(straight, optimizer, 3)

    resumed, optimizer = fresh()
    resumed.data.copy_(middle)
    optimizer.load_state_dict(unpack(tensors, json.loads(json.dumps(skeleton, allow_nan=False))))
    walk(resumed, optimizer, 3)
    assert torch.equal(resumed, straight)


def test_every_plain_value_survives() -> None:
    state = {0: [1, 2.5, None, True, "x", (math.inf, -math.inf)], "a": {"b": torch.arange(3)}}
    tensors, skeleton = pack(state)
    back = unpack(tensors, json.loads(json.dumps(skeleton, allow_nan=False)))
    assert torch.equal(back["a"].pop("b"), torch.arange(3))
    assert back == {0: [1, 2.5, None, True, "x", (math.inf, -math.inf)], "a": {}}


def test_tensors_that_share_memory_get_their_own() -> None:
    whole = torch.arange(6).view(2, 3)
    tensors, _ = pack({"a": whole, "b": whole.t()})
    assert tensors["/a"].data_ptr() != tensors["/b"].data_ptr()
    assert tensors["/b"].is_contiguous()


def test_what_is_no_plain_value_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="'/state/hook' is a function"):
        pack({"state": {"hook": test_every_plain_value_survives}})
