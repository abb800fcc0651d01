"""Scores of sampled images: any function from a PIL image to a number, named by its import path."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, cast

from PIL import Image

from eridiff.errors import RecipeError

if TYPE_CHECKING:
    from eridiff.evaluation.pictures import Picture

Metric = Callable[[Image.Image], float]


def load_metric(name: str) -> Metric:
    """The function that `module:function` names.

    Raises:
        RecipeError: the name has another form, or names nothing that can be called.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise RecipeError(
            "This names no metric.", where="sample.metric", found=name, wanted="module:function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            "The metric cannot be imported.", where="sample.metric", found=str(error)
        ) from error
    if not callable(found):
        raise RecipeError("The metric is no function.", where="sample.metric", found=type(found).__name__)
    return cast(Metric, found)


def score(metric: Metric, path: Path) -> float:
    """The metric of an image file, given to it in RGB.

    Raises:
        RecipeError: it is no finite number.
    """
    with Image.open(path) as image:
        value = float(metric(image.convert("RGB")))
    if not math.isfinite(value):
        raise RecipeError("The metric gave no finite number.", where=f"sample.metric on {path}", found=value)
    return value


def mean_by_subject(
    pictures: Iterable[Picture], scores: Mapping[str, float]
) -> dict[tuple[str, float], float]:
    """Mean score over prompts and seeds, for each (checkpoint label or `base`, strength).

    Args:
        pictures: the images of an evaluation.
        scores: a score for the key of each.
    """
    grouped: dict[tuple[str, float], list[float]] = {}
    for picture in pictures:
        label = picture.lora.label if picture.lora else "base"
        grouped.setdefault((label, picture.strength), []).append(scores[picture.key])
    return {subject: fmean(values) for subject, values in grouped.items()}
