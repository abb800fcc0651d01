from __future__ import annotations

import pytest

from eridiff.training.schedules import SHAPES, rate_factor


def factors(shape: str, warmup: int = 0, steps: int = 10) -> list[float]:
    return [rate_factor(step, shape=shape, warmup_steps=warmup, num_steps=steps) for step in range(steps)]


def test_constant_is_the_peak_throughout() -> None:
    assert factors("constant") == [1.0] * 10


def test_warm_up_rises_evenly_to_the_peak() -> None:
    assert factors("constant", warmup=4)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_linear_falls_evenly_and_would_reach_zero_after_the_last_step() -> None:
    assert factors("linear") == pytest.approx([1.0 - step / 10 for step in range(10)])


def test_cosine_is_half_way_in_the_middle() -> None:
    values = factors("cosine", warmup=2, steps=12)
    assert values[2] == 1.0
    assert values[7] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 3, 10, 50])
def test_no_step_is_wasted(shape: str, warmup: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(shape, warmup=warmup))
