"""A finished and evaluated run, to look at or to do with as a test likes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from eridiff import families
from tests.stages.evaluate.world import World, copied, prepare


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    return cache(lambda family: prepare(tmp_path_factory.mktemp(family), family))


@pytest.fixture(params=families.names())
def any_world(request: pytest.FixtureRequest, worlds: Callable[[str], World]) -> World:
    """One of each family, to look at only."""
    return worlds(request.param)


@pytest.fixture
def world(worlds: Callable[[str], World], tmp_path: Path) -> World:
    """One to do with as a test likes."""
    return copied(worlds(families.names()[1]), tmp_path)
