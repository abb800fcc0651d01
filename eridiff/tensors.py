"""Between torch tensors and stored bytes, without a copy where there need be none."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor

from eridiff.store.tensorfile import StoredTensor

_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_stored(tensor: Tensor) -> StoredTensor:
    """The bytes of a tensor of any device, a copy of their own.

    Args:
        tensor: any shape; any dtype that safetensors has.
    """
    whole = tensor.detach().to("cpu").contiguous()
    raw = whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
    return StoredTensor(_NAMES[whole.dtype], tuple(whole.shape), raw)


def from_stored(stored: StoredTensor) -> Tensor:
    """The tensor that lies in stored bytes, on the CPU, without a copy.

    The bytes may be a read-only file map: writing to the tensor in place kills the process. Move it to a
    device, stack it into a batch, or clone it first.
    """
    dtype = _DTYPES[stored.dtype]
    if stored.nbytes == 0:
        return torch.empty(stored.shape, dtype=dtype)
    # By DLPack from Arrow, since torch and numpy warn of read-only buffers.
    raw = pa.Array.from_buffers(pa.uint8(), stored.nbytes, [None, pa.py_buffer(stored.data)])
    return torch.from_dlpack(raw).view(dtype).reshape(stored.shape)
