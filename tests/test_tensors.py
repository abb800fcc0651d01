from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.tensors import _NAMES, from_stored, to_stored


@pytest.mark.parametrize("dtype", _NAMES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5), (0, 4)])
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    raw = torch.randint(
        0, 2, (*shape, dtype.itemsize), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    tensor = raw.view(dtype).reshape(shape)
    stored = to_stored(tensor)
    assert (stored.dtype, stored.shape) == (_NAMES[dtype], shape)
    again = from_stored(stored)
    assert again.dtype == dtype
    assert again.shape == shape
    assert again.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_strided_tensors_are_stored_row_by_row() -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    assert torch.equal(from_stored(to_stored(tensor)), tensor)


def test_not_a_number_keeps_its_bits() -> None:
    tensor = torch.tensor([0x7FC1, 0xFF81, 0x0001], dtype=torch.uint16).view(torch.bfloat16)
    again = from_stored(to_stored(tensor))
    assert torch.equal(again.view(torch.int16), tensor.view(torch.int16))


def test_reading_copies_nothing(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "space")
    store.append([Item("a", {"x": to_stored(torch.arange(1000, dtype=torch.bfloat16))})])
    reader = store.open()
    one, other = (from_stored(reader.get("a")["x"]) for _ in range(2))
    assert one.data_ptr() == other.data_ptr()
    del reader, other
    assert one[999] == 1000  # the map lives as long as the tensor does


def test_bytes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 8 bytes"):
        StoredTensor("F32", (2,), b"123")
    with pytest.raises(ValueError, match="is not one of"):
        StoredTensor("bfloat16", (2,), b"1234")
