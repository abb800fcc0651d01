"""One safetensors file, read without trusting it: its header as facts, its tensors one at a time.

The format is a length, a JSON header, and the tensors' bytes without gaps. Everything in a header is checked
before a byte of data is touched; nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.errors import ModelError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: safetensors' name of its dtype, its shape, and its place in the file in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says it holds.

    Attributes:
        path: the file.
        tensors: key to place, in the order of the file.
        metadata: the free-form strings.
        data_start: bytes before the first tensor.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int

    def under(self, prefix: str) -> dict[str, TensorInfo]:
        """The tensors whose key starts with a prefix, under the rest of their keys."""
        return {key[len(prefix) :]: info for key, info in self.tensors.items() if key.startswith(prefix)}


def read_header(path: Path) -> Header:
    """The checked header of a safetensors file.

    Raises:
        ModelError: the file is missing, of another format, cut off, or contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            _refuse_other_formats(path, first)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(path, f"a header of {length:,} bytes in a file of {size:,}")
            text = file.read(length)
    except OSError as error:
        raise ModelError("a model file cannot be read", where=path, found=error.strerror) from error
    return _parse(path, text, size)


def _parse(path: Path, text: bytes, size: int) -> Header:
    try:
        fields = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"a header that is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _damaged(path, "a header that is not a mapping")
    metadata = fields.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "metadata that is not text")
    data_start = 8 + len(text)
    tensors = {key: _tensor(path, key, fields[key], data_start) for key in fields}
    _refuse_gaps(path, tensors, data_start, size)
    return Header(path, tensors, metadata, data_start)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is given twice")
    return fields


def _tensor(path: Path, key: str, field: object, data_start: int) -> TensorInfo:
    match field:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
            dtype in ITEM_BITS
            and all(type(side) is int and side >= 0 for side in shape)
            and 0 <= start <= stop
        ):
            if math.prod(shape) * ITEM_BITS[dtype] != (stop - start) * 8:
                raise _damaged(path, f"{key}: {stop - start:,} bytes for {dtype} {shape}")
            return TensorInfo(dtype, tuple(shape), data_start + start, data_start + stop)
    raise _damaged(path, f"{key}: {str(field)[:200]}")


def _refuse_gaps(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    end = data_start
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            raise _damaged(path, f"{key} starts at byte {info.start:,}, the one before ends at {end:,}")
        end = info.stop
    if end != size:
        raise _damaged(path, f"{size:,} bytes where the header promises {end:,}")


def _refuse_other_formats(path: Path, first: bytes) -> None:
    formats = {b"PK\x03\x04": "a pickled PyTorch file", b"GGUF": "a GGUF file"}
    name = formats.get(first[:4])
    if name is None and first[:1] == b"\x80" and first[4:] != bytes(4):
        name = "a pickle"  # a header whose length begins with 0x80 has zeros there
    if name is not None:
        raise ModelError(
            f"this is {name}, which is not read here",
            where=path,
            wanted="a safetensors file",
            fix="get the model as safetensors, in fp16, bf16 or fp32",
        )


def _damaged(path: Path, found: str) -> ModelError:
    return ModelError(
        "a safetensors file is damaged", where=path, found=found, fix="download or copy the file again"
    )


class MappedTensors:
    """The tensors of an open file: each is read when asked for and leaves memory when let go."""

    def __init__(self, header: Header, mapped: mmap.mmap) -> None:
        self._header, self._mapped = header, mapped

    def view(self, key: str) -> torch.Tensor:
        """A tensor over the file's own pages; it must not be written, nor outlive the file."""
        import torch

        info = self._header.tensors[key]
        dtype = torch_dtype(self._header.path, key, info.dtype)
        if info.start == info.stop:
            return torch.empty(info.shape, dtype=dtype)
        # Ask for all of it at once: page by page, a disk is read in small pieces.
        start = info.start - info.start % mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_WILLNEED, start, info.stop - start)
        flat = torch.frombuffer(
            self._mapped, dtype=torch.uint8, count=info.stop - info.start, offset=info.start
        )
        if info.start % dtype.itemsize:
            flat = flat.clone()
        return flat.view(dtype).view(info.shape)

    def forget(self, key: str) -> None:
        """Let the system drop the pages of a tensor from this process."""
        info = self._header.tensors[key]
        start = info.start - info.start % mmap.PAGESIZE
        if info.stop > start:
            self._mapped.madvise(mmap.MADV_DONTNEED, start, info.stop - start)


@contextmanager
def mapped(header: Header) -> Iterator[MappedTensors]:
    """A file's tensors, memory-mapped while the context lasts."""
    with header.path.open("rb") as file:
        # Private and writable, because torch warns about read-only buffers; nobody writes to it.
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        yield MappedTensors(header, pages)


def torch_dtype(path: Path, key: str, name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype.

    Raises:
        ModelError: torch has none.
    """
    import torch

    names = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }  # fmt: skip
    if name not in names:
        raise ModelError("a tensor has a type that is not read here", where=f"{path}: {key}", found=name)
    return names[name]
