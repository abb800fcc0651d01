"""CLIP's text encoders: OpenAI's names as transformers writes them, and OpenCLIP's as in SDXL's file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Assembly, Link, Names, Piece, Shape, Structure, count

_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def structure(keys: Collection[str]) -> Structure:
    """Number of layers."""
    return {"layers": max(count(keys, "transformer.resblocks."), count(keys, "text_model.encoder.layers."))}


def links(counts: Structure) -> list[Link]:
    """All modules with weights, OpenCLIP's on the left."""
    found = [
        Link("token_embedding", ("text_model.embeddings.token_embedding",)),
        Link("positional_embedding", ("text_model.embeddings.position_embedding",), leaves={"": "weight"}),
        Link("ln_final", ("text_model.final_layer_norm",)),
        Link("text_projection", ("text_projection",), form="transposed", leaves={"": "weight"}),
    ]
    for index in range(counts["layers"]):
        old, new = f"transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        attention = tuple(f"{new}.self_attn.{name}_proj" for name in "qkv")
        leaves = {"in_proj_weight": "weight", "in_proj_bias": "bias"}
        found.append(Link(f"{old}.attn", attention, leaves=leaves))
        found += [Link(f"{old}.{ours}", (f"{new}.{theirs}",)) for ours, theirs in _LAYER.items()]
    return found


_HEAD = 64


def configure(facts: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The encoder's configuration, with sizes from the shapes of its tensors.

    Raises:
        ModelError: its width is not made of heads of 64, so that their number is unknown.
    """
    bare = {key.removeprefix("text_model."): shape for key, shape in shapes.items()}
    vocabulary, width = bare["embeddings.token_embedding.weight"]
    if width % _HEAD:
        raise ModelError(
            "the number of heads of this CLIP cannot be told from its weights",
            found=f"a width of {width}",
            wanted=f"a multiple of {_HEAD}",
            fix="put its config.json beside the tokenizers: <model.tokenizers>/text_encoder/config.json",
        )
    return facts | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": width // _HEAD,
        "num_hidden_layers": count(bare, "encoder.layers."),
        "intermediate_size": bare["encoder.layers.0.mlp.fc1.weight"][0],
        "max_position_embeddings": bare["embeddings.position_embedding.weight"][0],
        "projection_dim": bare.get("text_projection.weight", (width,))[0],
    }


_LEVEL = "text_model."
_PROJECTION = "text_projection.weight"


def fit(found: Mapping[str, Assembly], wanted: Mapping[str, Shape]) -> dict[str, Assembly]:
    """Tensors under the names of a model, which may or may not have a level `text_model`.

    A projection that a file leaves out is one that changes nothing.

    Raises:
        ModelError: the model needs a projection to another width, and the file has none.
    """
    level = _LEVEL if any(key.startswith(_LEVEL) for key in wanted) else ""
    projection = found.get(_PROJECTION)
    full = {
        level + key.removeprefix(_LEVEL): assembly for key, assembly in found.items() if key != _PROJECTION
    }
    if _PROJECTION in wanted:
        rows, columns = wanted[_PROJECTION]
        if projection is None and rows != columns:
            raise ModelError("the text encoder's projection is missing", wanted=wanted[_PROJECTION])
        full[_PROJECTION] = projection or (Piece("", (0, rows), "identity"),)
    return full


OPEN_CLIP = Names(structure, links, mark="ln_final.weight", ignored=("logit_scale", "attn_mask"))
