from __future__ import annotations

import pytest

from stages.printing import tell


def test_values_are_no_markup_and_stay_on_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    value = "my [v2] [/INST] :x: \\[/] " + "x" * 200
    tell("path", value)
    assert capsys.readouterr().out == f"path: {value}\n"
