from __future__ import annotations

import pytest

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import family_of
from stages import ingest
from stages.dataset import current_snapshot, workspace
from tests.encoding.world import World, draw_images, recipe_for


@pytest.fixture(scope="session", params=families.names())
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp(request.param)
    save_random_base(request.param, root / "base")
    draw_images(root / "folder")
    recipe = recipe_for(root, request.param)
    ingest.run(recipe)
    return World(recipe, current_snapshot(recipe), workspace(recipe).images, family_of(recipe))
