"""T5's encoder: one naming everywhere; files hold its table of tokens under one name or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eridiff.families.checkpoints.keys import Assembly, Shape, count

_TABLES = ("shared.weight", "encoder.embed_tokens.weight")


def configure(facts: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The encoder's configuration, with sizes from the shapes of its tensors."""
    vocabulary, width = next(shapes[name] for name in _TABLES if name in shapes)
    first = "encoder.block.0.layer"
    heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"][1]
    return facts | {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_heads": heads,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wo.weight"][1],
        "num_layers": count(shapes, "encoder.block."),
    }


def both_tables(found: Mapping[str, Assembly]) -> dict[str, Assembly]:
    """The table of tokens under both of its names, wherever it was."""
    table = next((found[name] for name in _TABLES if name in found), None)
    return dict(found) if table is None else {**found, **{name: found.get(name, table) for name in _TABLES}}
