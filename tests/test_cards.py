from __future__ import annotations

import subprocess
from typing import Any

import pytest

from eridiff import cards as module
from eridiff.cards import card_bytes


@pytest.mark.parametrize(
    ("device", "visible", "wanted"),
    [
        ("auto", None, (24564, 16384, 8192)),
        ("cuda:1", None, (16384,)),
        ("auto", "2,0", (8192, 24564)),
        ("cuda:1", "2,0", (24564,)),
        ("auto", "GPU-bb", (16384,)),
        ("auto", "", ()),
        ("cuda:3", None, ()),
        ("cpu", None, ()),
    ],
)
def test_the_cards_are_those_that_a_run_may_use(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    visible: str | None,
    wanted: tuple[int, ...],
) -> None:
    told = "0, GPU-aa11, 24564\n1, GPU-bb22, 16384\n2, GPU-cc33, 8192\n"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        module.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, stdout=told)
    )
    found = card_bytes(device)
    assert found == tuple(size * 2**20 for size in wanted)


def test_a_driver_that_says_nothing_leaves_the_cards_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(command: Any, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(module.subprocess, "run", hanging)
    assert card_bytes("auto") == ()
