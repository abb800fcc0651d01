"""Headers of safetensors files, and metadata that change while the tensors stay byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from eridiff.families.checkpoints.tensorfile import Header, read_header
from eridiff.store.files import atomic_path


def header_bytes(metadata: Mapping[str, str], tensors: Mapping[str, object]) -> bytes:
    """What stands before the data of a safetensors file.

    Args:
        metadata: free-form strings; written in their own order.
        tensors: key to `{"dtype", "shape", "data_offsets"}`, in the order of the file.
    """
    text = json.dumps({"__metadata__": dict(metadata), **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def table(header: Header) -> dict[str, object]:
    """A file's tensors as its header has them."""
    return {
        key: {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start - header.data_start, info.stop - header.data_start],
        }
        for key, info in header.tensors.items()
    }


def set_metadata(path: Path, changes: Mapping[str, str | None]) -> bool:
    """Sets metadata of a safetensors file, or with None removes them; returns whether that changed anything.

    The new file takes the old one's place whole; its tensors are copied as they are.

    Raises:
        ModelError: the file is missing or damaged.
        StoreError: the disk is full; the file stays as it was.
    """
    header = read_header(path)
    merged = {**header.metadata, **changes}
    metadata = {key: value for key, value in sorted(merged.items()) if value is not None}
    if metadata == header.metadata:
        return False
    with atomic_path(path) as aside, path.open("rb") as source, aside.open("wb") as target:
        target.write(header_bytes(metadata, table(header)))
        source.seek(header.data_start)
        shutil.copyfileobj(source, target, 1 << 20)
    return True
