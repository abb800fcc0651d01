"""What a safetensors file is known by: its tensors, whatever its metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from eridiff.errors import StoreError
from eridiff.store.files import FileDigests
from eridiff.store.tensorfile import digest_tensors, holds_tensors

TENSORS = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 2), np.float16)}


def saved(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    path.write_bytes(save(tensors, metadata or None))
    return path


def test_metadata_do_not_count(tmp_path: Path) -> None:
    plain, told = saved(tmp_path / "a", TENSORS), saved(tmp_path / "b", TENSORS, title="mine")
    assert plain.read_bytes() != told.read_bytes()
    assert digest_tensors(plain) == digest_tensors(told)
    assert holds_tensors(plain, digest_tensors(told))


@pytest.mark.parametrize(
    "other",
    [
        {"a": TENSORS["a"], "c": TENSORS["b"]},
        {"a": TENSORS["a"].reshape(2, 2), "b": TENSORS["b"]},
        {"a": TENSORS["a"], "b": TENSORS["b"].view(np.int16)},
        {"a": -TENSORS["a"], "b": TENSORS["b"]},
    ],
    ids=["name", "shape", "type", "value"],
)
def test_all_of_a_tensor_counts(tmp_path: Path, other: dict[str, np.ndarray]) -> None:
    digest = digest_tensors(saved(tmp_path / "a", TENSORS))
    assert not holds_tensors(saved(tmp_path / "b", other), digest)


@pytest.mark.parametrize("cut", [4, 30, -1])
def test_a_file_that_was_cut_off_has_none(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path / "a", TENSORS)
    digest = digest_tensors(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match="damaged"):
        digest_tensors(path)
    assert not holds_tensors(path, digest)
    assert not holds_tensors(tmp_path / "absent", digest)


def test_both_digests_of_a_file_are_remembered(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", TENSORS)
    digests = FileDigests(tmp_path / "digests.json")
    assert digests.digest(path, digest_tensors) == digest_tensors(path)
    assert digests.digest(path) not in ("", digest_tensors(path))
