"""Which text encoders a recipe trains, so that their part of an embedding cannot come from the cache.

Nothing here loads torch.
"""

from __future__ import annotations

from eridiff.encoding.spaces import family_of
from eridiff.errors import RecipeError
from eridiff.recipe import Recipe

_SWITCH = "train.train_text_encoder"


def trained_encoders(recipe: Recipe) -> tuple[str, ...]:
    """Components of the text encoders that the recipe trains; none by default.

    Raises:
        RecipeError: the family has none to train, encoders would be trained in fp16, or a setting is about
            encoders that are not trained.
    """
    if not recipe.train.train_text_encoder:
        _refuse_idle_settings(recipe)
        return ()
    encoders = family_of(recipe).trainable_encoders
    if not encoders:
        raise RecipeError(
            "This family has no text encoder that can be trained.",
            where=_SWITCH,
            found=recipe.model.family,
            fix=f"leave {_SWITCH} out",
        )
    if recipe.precompute.text_dtype == "fp16":
        raise RecipeError(
            "Text encoders cannot be trained in fp16: small gradients would be lost.",
            where="precompute.text_dtype",
            found="fp16",
            wanted="bf16 or fp32: trained encoders compute in the precision of the stored embeddings",
            fix=f"set precompute.text_dtype: bf16, or leave {_SWITCH} out",
        )
    return tuple(encoder.name for encoder in encoders)


def cached_encoders(recipe: Recipe) -> tuple[str, ...]:
    """Components of the text encoders whose part of a caption's embedding comes from the cache."""
    trained = trained_encoders(recipe)
    texts = [name for name in family_of(recipe).parts.text if name.startswith("text_encoder")]
    return tuple(name for name in texts if name not in trained)


def explained(recipe: Recipe) -> str:
    """What trained encoders mean for a run, for people; nothing where none are trained."""
    trained, cached = (
        " and ".join(family_of(recipe).checkpoint.models[name].kind for name in names)
        for names in (trained_encoders(recipe), cached_encoders(recipe))
    )
    if not trained:
        return ""
    rest = f"only {cached} is read from the cache" if cached else "no embedding is read from the cache"
    return f"{trained} trained with the denoiser: captions are encoded anew in every step, {rest}"


def _refuse_idle_settings(recipe: Recipe) -> None:
    network, train = recipe.network, recipe.train
    given = {
        "train.text_encoder_lr": train.text_encoder_lr is not None,
        "network.text_encoder_linear": network.text_encoder_linear is not None,
        "network.text_encoder_targets": network.text_encoder_targets != "attn-mlp",
    }
    idle = [name for name, is_given in given.items() if is_given]
    if idle:
        raise RecipeError(
            "A setting is about text encoders, but none are trained.",
            where=", ".join(idle),
            fix=f"set {_SWITCH}: true, or leave it out",
        )
