from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from eridiff.errors import RecipeError
from eridiff.evaluation.metrics import load_metric, mean_by_subject, score
from eridiff.evaluation.pictures import all_pictures
from tests.evaluation.test_pictures import LORA, SETTINGS

HERE = "tests.evaluation.test_metrics"
NUMBER = 3


def redness(image: Image.Image) -> float:
    """Mean of the red channel, 0 to 1."""
    assert image.mode == "RGB"
    return image.resize((1, 1)).getpixel((0, 0))[0] / 255


def nothing(_image: Image.Image) -> float:
    return math.nan


def test_a_metric_named_by_its_import_path_scores_a_file(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "a.png")
    assert score(load_metric(f"{HERE}:redness"), tmp_path / "a.png") == 1.0


@pytest.mark.parametrize(
    "name", ["redness", f"{HERE}:", f"{HERE}:blueness", "no.such.module:f", f"{HERE}:NUMBER"]
)
def test_a_bad_name_is_a_bad_recipe(name: str) -> None:
    with pytest.raises(RecipeError):
        load_metric(name)


def test_no_number_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="no finite number"):
        score(nothing, tmp_path / "a.png")


def test_scores_are_averaged_over_prompts_and_seeds() -> None:
    pictures = all_pictures(("a", "b"), (1, 2), (0.0, 1.0), (LORA,), SETTINGS)
    scores = {picture.key: picture.strength + number for number, picture in enumerate(pictures)}
    assert mean_by_subject(pictures, scores) == {("base", 0.0): 1.5, ("step 250", 1.0): 6.5}
