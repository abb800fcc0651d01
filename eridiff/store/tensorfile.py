"""Tensors as bytes, and the safetensors file that holds them.

The layout is Hugging Face's safetensors: eight bytes with the header's length, a JSON header, then the data
without gaps. It is written here, so that the bytes stream to the disk from where they lie, and every
tensor's offset is known before the first byte is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eridiff.errors import StoreError
from eridiff.store.files import canonical_json

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes an element of each dtype takes; the names are those of safetensors."""

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I8": "i1", "BOOL": "?"} | {
    f"{kind.upper()}{bits}": f"<{kind}{bits // 8}" for kind in "ui" for bits in (16, 32, 64)
}
_ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's bytes: little-endian, row by row.

    Attributes:
        dtype: a safetensors name: `"BF16"`, `"F32"`, ...
        shape: its sides; `()` is a scalar.
        data: contiguous bytes, as many as dtype and shape say.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __post_init__(self) -> None:
        """Refuses bytes that are not such a tensor."""
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
        wanted = math.prod(self.shape) * DTYPE_BYTES[self.dtype]
        if self.nbytes != wanted:
            raise ValueError(f"{self.dtype} {self.shape} takes {wanted} bytes, not {self.nbytes}")

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return memoryview(self.data).nbytes


@dataclass(frozen=True)
class Statistics:
    """What a tensor's values are like; all `None` for a dtype that is not looked into (8-bit floats)."""

    finite: bool | None
    minimum: float | None
    maximum: float | None
    mean: float | None


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def statistics(tensor: StoredTensor) -> Statistics:
    """Whether all values are finite, their extremes and their mean."""
    if tensor.nbytes == 0 or (tensor.dtype != "BF16" and tensor.dtype not in _NUMPY):
        return Statistics(None, None, None, None)
    if tensor.dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(tensor.data, _NUMPY[tensor.dtype])
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = float(values.min()), float(values.max())
        mean = float(values.mean(dtype=np.float64))
    finite = math.isfinite(low) and math.isfinite(high)
    return Statistics(finite, low, high, mean)


def file_layout(
    tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Extent]]:
    """The header of a safetensors file of `tensors`, and where each will lie.

    Wide dtypes come first, so that every tensor starts at a multiple of its element's size.
    """
    order = sorted(tensors, key=lambda name: -DTYPE_BYTES[tensors[name].dtype])
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    extents, offset = {}, len(header)
    for name in order:
        tensor = tensors[name]
        extents[name] = Extent(tensor.dtype, tensor.shape, offset, tensor.nbytes)
        offset += tensor.nbytes
    return header, extents


def write_tensors(
    file: BinaryIO, header: bytes, extents: Mapping[str, Extent], tensors: Mapping[str, StoredTensor]
) -> None:
    """Writes what `file_layout` laid out."""
    file.write(header)
    for name in extents:
        file.write(tensors[name].data)


def digest_tensors(path: Path) -> str:
    """The sha256 of a safetensors file's tensors, 64 hexadecimal digits: names, types, shapes and bytes.

    Metadata have no part in it, nor the order of the header's keys.

    Raises:
        StoreError: the file is none, or was cut off.
    """
    try:
        with path.open("rb") as file:
            entries = _entries(file, path)
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            if path.stat().st_size != file.tell() + end:
                raise ValueError("it is shorter or longer than its header says")
            whole = hashlib.sha256(canonical_json(entries))
            return hashlib.file_digest(file, lambda: whole).hexdigest()
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise StoreError(
            "A safetensors file is damaged.", where=path, found=error, fix="delete it and make it again"
        ) from error


def holds_tensors(path: Path, digest: str) -> bool:
    """Whether a file is there and has the tensors of that digest."""
    try:
        return digest_tensors(path) == digest
    except (FileNotFoundError, StoreError):
        return False


def read_extents(path: Path) -> dict[str, Extent]:
    """Where each tensor of a safetensors file lies, from its header.

    Raises:
        ValueError: the header is not one.
    """
    try:
        with path.open("rb") as file:
            entries = _entries(file, path)
            start = file.tell()
        return {
            name: Extent(
                entry["dtype"],
                tuple(entry["shape"]),
                start + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the header is not a table of tensors ({error})") from error


def _entries(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The header's table of tensors; the file then stands at its data."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ValueError("the file ends before its header")
    (length,) = struct.unpack("<Q", prefix)
    if length > path.stat().st_size - 8:
        raise ValueError("the header is longer than the file")
    entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries
