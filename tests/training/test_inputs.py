"""What decides a training: here, the LoRA that it starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.errors import ModelError
from eridiff.recipe import Recipe
from eridiff.store.snapshots import Snapshot
from eridiff.training.inputs import inputs_of

LORA = {
    "unet.a.lora_A.weight": np.ones((1, 2), np.float32),
    "unet.a.lora_B.weight": np.ones((2, 1), np.float32),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_random_base(families.names()[1], folder)
    return folder


def start_of(base: Path, path: Path) -> str | None:
    """The digest of what a training starts from."""
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"family": families.names()[1], "base": str(base)},
            "datasets": [{"folder_path": str(path.parent)}],
            "network": {"init_from": str(path)},
            "storage": {"data": str(path.parent / "data")},
        }
    )
    return inputs_of(recipe, Snapshot(())).start


def test_metadata_of_the_start_do_not_decide(base: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "plain.safetensors", tmp_path / "told.safetensors"]
    for path, metadata in zip(paths, (None, {"title": "mine"}), strict=True):
        path.write_bytes(save(LORA, metadata))
    assert start_of(base, paths[0]) == start_of(base, paths[1]) is not None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"# A text, and nothing else", "damaged"),
        (save(LORA)[:-1], "damaged"),
        (b"PK\x03\x04 and so on", "a pickled PyTorch file"),
        (save({"weight": LORA["unet.a.lora_A.weight"]}), "more than a LoRA"),
        (save({}), "holds no LoRA"),
    ],
    ids=["text", "cut off", "pickle", "weights", "empty"],
)
def test_a_start_that_is_no_lora_is_named_and_stays(
    base: Path, tmp_path: Path, content: bytes, found: str
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"mine: .*{found}") as caught:
        start_of(base, path)
    assert caught.value.where == "network.init_from"
    assert caught.value.exit_code == 5
    assert "delete" not in str(caught.value)
