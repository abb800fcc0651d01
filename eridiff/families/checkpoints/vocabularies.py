"""Where the tokenizers lie of a base whose files hold none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.folder import tokenizer_component
from eridiff.families.checkpoints.layout import CheckpointLayout

_REPOSITORIES = {
    "clip": ("openai/clip-vit-large-patch14", "vocab.json"),
    "t5": ("google/t5-v1_1-xxl", "tokenizer_config.json"),
}
"""Hub repositories of the vocabularies, and a file that their copies hold."""


def in_folder(layout: CheckpointLayout, folder: Path) -> dict[str, Component]:
    """The family's tokenizers in a folder: `clip` and `t5`, or diffusers' `tokenizer`, `tokenizer_2`, ..."""
    found: dict[str, Component] = {}
    for name, spec in layout.tokenizers.items():
        path = next((path for path in (folder / name, folder / spec.kind) if path.is_dir()), None)
        if path is not None:
            found[name] = tokenizer_component(path, name)
    return found


def in_cache(layout: CheckpointLayout, names: Sequence[str]) -> dict[str, Component]:
    """Those of some tokenizers whose vocabulary is in the hub's cache on this machine."""
    if not names:
        return {}
    from huggingface_hub import try_to_load_from_cache

    found: dict[str, Component] = {}
    for name in names:
        repository, file = _REPOSITORIES[layout.tokenizers[name].kind]
        path = try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            found[name] = tokenizer_component(Path(path).parent, name)
    return found
