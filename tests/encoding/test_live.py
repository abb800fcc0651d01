"""Which text encoders a recipe trains, and what of its captions is still cached."""

from __future__ import annotations

from typing import Any

import pytest

from eridiff.encoding.live import cached_encoders, explained, trained_encoders
from eridiff.encoding.wanted import prompts_of, wanted_captions
from eridiff.errors import RecipeError
from eridiff.recipe import Recipe
from tests.encoding.world import World

CLIPS = {"sdxl": ("text_encoder", "text_encoder_2"), "sd35": ("text_encoder", "text_encoder_2")}
CLIPS |= {"flux": ("text_encoder",)}
T5 = {"sdxl": (), "sd35": ("text_encoder_3",), "flux": ("text_encoder_2",)}


def changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=change) for name, change in sections.items()}
    )


def trained(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    return changed(recipe, **{"train": {"train_text_encoder": True}, **sections})


def test_clips_are_trained_and_t5_never(world: World) -> None:
    family = world.recipe.model.family
    assert trained_encoders(world.recipe) == ()
    assert cached_encoders(world.recipe) == CLIPS[family] + T5[family]
    assert trained_encoders(trained(world.recipe)) == CLIPS[family]
    assert cached_encoders(trained(world.recipe)) == T5[family]


def test_captions_are_encoded_only_for_what_reads_them(world: World) -> None:
    wanted = set(wanted_captions(trained(world.recipe), world.snapshot).values())
    everything = set(wanted_captions(world.recipe, world.snapshot).values())
    held_out = {caption for sample in world.snapshot.holdout for caption in sample.captions}
    if T5[world.recipe.model.family]:
        assert wanted == everything
    else:
        assert wanted == held_out | prompts_of(world.recipe) < everything


def test_people_are_told(world: World) -> None:
    assert explained(world.recipe) == ""
    told = explained(trained(world.recipe))
    assert told.startswith("clip_l")
    assert ("only t5xxl is read" in told) == bool(T5[world.recipe.model.family])


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("train", {"text_encoder_lr": 1e-5}),
        ("network", {"text_encoder_linear": 4}),
        ("network", {"text_encoder_targets": "attn"}),
    ],
)
def test_a_setting_of_encoders_that_are_not_trained_is_an_error(
    world: World, section: str, setting: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="none are trained") as caught:
        trained_encoders(changed(world.recipe, **{section: setting}))
    assert caught.value.where == f"{section}.{next(iter(setting))}"
    whole = {"train": {"train_text_encoder": True}}
    whole[section] = {**whole.get(section, {}), **setting}
    assert trained_encoders(changed(world.recipe, **whole))


def test_fp16_would_lose_gradients_of_encoders(world: World) -> None:
    with pytest.raises(RecipeError, match="fp16"):
        trained_encoders(trained(world.recipe, precompute={"text_dtype": "fp16"}))


def test_a_family_without_trainable_encoders_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(world.family), "trainable_encoders", ())
    with pytest.raises(RecipeError, match="no text encoder that can be trained"):
        trained_encoders(trained(world.recipe))
