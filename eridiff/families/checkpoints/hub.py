"""Bases from the Hugging Face hub: a repository at one commit, of which only what is needed is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from eridiff.errors import ModelError
from eridiff.families.checkpoints.folder import WEIGHTS
from eridiff.families.checkpoints.layout import CheckpointLayout

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_id(text: str) -> bool:
    """Whether a text can be a hub id, `owner/name`."""
    return _ID.fullmatch(text) is not None and not text.endswith(".safetensors")


def snapshot(name: str, layout: CheckpointLayout, *, revision: str | None, variant: str | None) -> Path:
    """The folder of a repository's files; its name is the commit.

    What is in the cache is used as it is; else the files are downloaded.

    Raises:
        ModelError: the repository cannot be reached, or has no such revision.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = patterns(layout, variant)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            "a base model cannot be fetched from the hub",
            where="model.base",
            found=f"{name}{'' if revision is None else f' at {revision}'}: {str(error).splitlines()[0]}",
            fix="check its name, its licence and your login (`hf auth login`), or give a path to its files",
        ) from error


def patterns(layout: CheckpointLayout, variant: str | None) -> list[str]:
    """Names of the files of a repository that make a base, one variant of the weights alone."""
    middle = f".{variant}" if variant else ""
    files = ["config.json", "*.index*.json"]
    for stem in WEIGHTS:
        files += [f"{stem}{middle}.safetensors", f"{stem}{middle}-*.safetensors"]
    weights = [f"{name}/{file}" for name in layout.models for file in files]
    others = [f"{name}/*" for name in (*layout.tokenizers, "scheduler")]
    return ["model_index.json", *weights, *others]
