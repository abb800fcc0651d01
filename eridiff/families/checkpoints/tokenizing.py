"""Tokenizers and schedulers of a base: from its own folders, or from the facts of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eridiff.families.checkpoints.facts import fact
from eridiff.families.checkpoints.folder import read_json

if TYPE_CHECKING:
    from eridiff.families.checkpoints.base import Base


def load_tokenizer(base: Base, name: str) -> Any:
    """A tokenizer, as transformers' fast class.

    Raises:
        ModelError: the base has none, and the recipe names no folder of tokenizers.
    """
    from transformers import CLIPTokenizer, T5Tokenizer

    component, spec = base.component(name), base.layout.tokenizers[name]
    kind = CLIPTokenizer if spec.kind == "clip" else T5Tokenizer
    if component.path.name == name:
        return kind.from_pretrained(component.path, local_files_only=True)
    return kind.from_pretrained(
        component.path, local_files_only=True, model_max_length=spec.max_length, pad_token=spec.pad_token
    )


def scheduler_config(base: Base) -> dict[str, Any]:
    """The configuration of the base's scheduler, or its family's."""
    if "scheduler" not in base.components:
        return fact(base.layout.scheduler)
    config = base.components["scheduler"].config
    assert config is not None
    return read_json(config)
